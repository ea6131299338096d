package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Crash does what a power failure and the next boot of the machine do to a node: all
// its processes, mounts, namespaces of pods, interfaces and what is below its /run are
// gone at once, with nobody asked; the rest of its files stays. Daemons can be started
// again.
func (n *Node) Crash(ctx context.Context) error {
	var errs []error
	processes, err := n.ProcessesNaming("")
	errs = append(errs, err)
	for _, p := range processes {
		errs = append(errs, p.Signal(unix.SIGKILL))
	}
	for _, p := range processes {
		errs = append(errs, p.Wait(ctx))
	}
	// Containers' processes are in the pods' namespaces.
	errs = append(errs, removeCgroups(ctx, n.Cgroup()), n.killShims(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("crash node %q: %w", n.cfg.Name, err)
	}
	if err := errors.Join(n.unmountVolatile(), n.removeInterfaces(ctx)); err != nil {
		return fmt.Errorf("crash node %q: %w", n.cfg.Name, err)
	}
	for _, dir := range []string{
		n.path(dirRun), n.path(dirLibvirt, "run"), n.path(dirContainerd, "state"), n.path(dirContainerd, "runc"),
	} {
		if err := empty(dir); err != nil {
			return fmt.Errorf("crash node %q: %w", n.cfg.Name, err)
		}
	}
	return errors.Join(n.makeFolders(), makeCgroups(n.Cgroup()))
}

// unmountVolatile leaves the mounts that the node itself made.
func (n *Node) unmountVolatile() error {
	points, err := n.mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range points {
		if slices.Contains([]string{n.path(dirKubelet), n.VMStateDir()}, point) {
			continue
		}
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// removeInterfaces removes the bridge; pods' interfaces have gone with their namespaces.
func (n *Node) removeInterfaces(ctx context.Context) error {
	argv := append(n.enter(), "ip", "link", "delete", n.net.bridge())
	_, err := run(ctx, argv[0], argv[1:]...)
	return err
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}
