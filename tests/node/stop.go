package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/libvirtd"
)

// removalTime bounds the orderly removal of pods before their processes are
// killed anyhow.
const removalTime = 30 * time.Second

// Stop removes everything of the node, running or not, also what a crash left.
// It can be repeated.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	errs = append(errs, n.stopDaemon(ctx, Kubelet))
	// Only an orderly removal gives the CNI plugins and libvirt a chance to clean
	// up; when a runtime cannot, the rest of this function does.
	errs = append(errs, n.removePods(ctx))
	backwards := append(order(), n.added()...)
	slices.Reverse(backwards)
	for _, name := range backwards {
		errs = append(errs, n.stopDaemon(ctx, name))
	}
	errs = append(errs, removeCgroups(ctx, n.Cgroup()), n.killShims(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take node %q down: %w", n.cfg.Name, err)
	}
	if err := errors.Join(n.unmountAll(), removeNetwork(n.id), n.removeResults()); err != nil {
		return fmt.Errorf("take node %q down: %w", n.cfg.Name, err)
	}
	if err := os.RemoveAll(n.root); err != nil {
		return fmt.Errorf("remove folder of node: %w", err)
	}
	return nil
}

func (n *Node) stopDaemon(ctx context.Context, name string) error {
	if name != Libvirtd {
		return n.Process(name).End(ctx, termGrace)
	}
	instance, err := libvirtd.Load(n.path(dirLibvirt))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return instance.Stop(ctx)
}

// removePods asks the runtimes that answer to remove all their pods at once.
func (n *Node) removePods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removalTime)
	defer cancel()
	var group errgroup.Group
	for name, socket := range map[string]string{Containerd: n.ContainerdSocket(), VMRuntime: n.VMRuntimeSocket()} {
		if n.Alive(name) {
			group.Go(func() error { return removePods(ctx, socket) })
		}
	}
	return group.Wait()
}

func removePods(ctx context.Context, socket string) error {
	conn, err := Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	containers, err := cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers of %s: %w", socket, err)
	}
	pods, err := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods of %s: %w", socket, err)
	}
	var stops, removals errgroup.Group
	for _, c := range containers.GetContainers() {
		stops.Go(func() error {
			_, err := cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.GetId()})
			return err
		})
	}
	err = stops.Wait()
	for _, p := range pods.GetItems() {
		removals.Go(func() error {
			_, stop := cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()})
			_, remove := cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()})
			return errors.Join(stop, remove)
		})
	}
	return errors.Join(err, removals.Wait())
}

// killShims ends containerd's shims that outlived their container.
func (n *Node) killShims(ctx context.Context) error {
	var errs []error
	processes, err := n.ProcessesNaming(n.ContainerdSocket())
	for _, p := range processes {
		errs = append(errs, p.Kill(ctx))
	}
	return errors.Join(append(errs, err)...)
}

// shareKubeletMounts makes what kubelet mounts for pods visible to the runtimes,
// although kubelet runs in a mount namespace of its own.
func (n *Node) shareKubeletMounts() error {
	dir := n.path(dirKubelet)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind folder %s of kubelet: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share folder %s of kubelet: %w", dir, err)
	}
	return nil
}

// mountState gives vmruntime's state a file system of its own, if that is wanted.
func (n *Node) mountState(ctx context.Context) error {
	switch {
	case n.cfg.StateBytes == 0:
		return nil
	case n.cfg.StateXFS:
		return n.mountXFS(ctx)
	}
	options := "mode=0711,size=" + strconv.FormatInt(n.cfg.StateBytes, 10)
	if err := unix.Mount("ambipod-"+n.id, n.VMStateDir(), "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount state of vmruntime: %w", err)
	}
	return nil
}

func (n *Node) mountXFS(ctx context.Context) error {
	file := n.path("state.xfs")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("make file system for vmruntime's state: %w", err)
	}
	if err := os.Truncate(file, n.cfg.StateBytes); err != nil {
		return fmt.Errorf("make file system for vmruntime's state: %w", err)
	}
	if _, err := run(ctx, "mkfs.xfs", "-q", file); err != nil {
		return fmt.Errorf("make file system for vmruntime's state (package xfsprogs): %w", err)
	}
	if _, err := run(ctx, "mount", "-o", "loop", file, n.VMStateDir()); err != nil {
		return fmt.Errorf("mount state of vmruntime: %w", err)
	}
	return os.Chmod(n.VMStateDir(), 0o711) //nolint:gosec // QEMU passes it on the way to its disks
}

// mounts lists mount points below the node's root, latest first.
func (n *Node) mounts() ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = file.Close() }()
	var found []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		const mountPoint = 4
		if point := strings.Fields(lines.Text())[mountPoint]; strings.HasPrefix(point, n.root+"/") {
			found = append(found, point)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	slices.Reverse(found)
	return found, nil
}

func (n *Node) unmountAll() error {
	points, err := n.mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range points {
		// A shared mount may have gone with its twin.
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// Remains lists what of the node is still on the machine: it is empty after Stop.
func (n *Node) Remains() ([]string, error) {
	var found []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("look for remains of node %q: %w", n.cfg.Name, err)
	}
	for _, link := range links {
		if strings.Contains(link.Attrs().Name, n.id) {
			found = append(found, "interface: "+link.Attrs().Name)
		}
	}
	for _, path := range []string{n.root, namespacePath(n.id)} {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, "file: "+path)
		}
	}
	cgroups, err := cgroupFolders(n.Cgroup())
	if err != nil {
		return nil, err
	}
	points, err := n.mounts()
	if err != nil {
		return nil, err
	}
	results, err := n.results()
	if err != nil {
		return nil, err
	}
	return slices.Concat(found, label("cgroup", cgroups), label("mount", points), label("file", results)), nil
}
