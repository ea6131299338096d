package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ambipod/ambipod/tests/process"
)

// Leftovers lists all that pods leave on a node while they exist, each as a
// line "kind: name". It is empty when the node has no pod and nothing leaked;
// folders that are made once for all pods do not count.
func (n *Node) Leftovers(ctx context.Context) ([]string, error) {
	var found []string
	for _, look := range []func(context.Context) ([]string, error){
		n.domains, n.interfaces, n.leases, n.podCgroups, n.podMounts, n.podFiles, n.podProcesses,
	} {
		lines, err := look(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for leftovers of pods: %w", err)
		}
		found = append(found, lines...)
	}
	return found, nil
}

// domains are libvirt's, of any state.
func (n *Node) domains(ctx context.Context) ([]string, error) {
	if !n.Alive(Libvirtd) {
		return nil, nil
	}
	out, err := run(ctx, "virsh", "--quiet", "--connect", n.LibvirtURI(), "list", "--all", "--name")
	if err != nil {
		return nil, err
	}
	return label("libvirt domain", strings.Fields(string(out))), nil
}

// interfaces are taps and the outer ends of pods' veth pairs. Those inside a
// pod's own namespace go with it.
func (n *Node) interfaces(ctx context.Context) ([]string, error) {
	argv := append(n.enter(), "ip", "-brief", "link", "show")
	out, err := run(ctx, argv[0], argv[1:]...)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "@")
		if !slices.Contains([]string{"lo", "uplink", n.net.bridge()}, name) {
			names = append(names, name)
		}
	}
	return label("interface", names), nil
}

// leases are host-local's files, each named by an address.
func (n *Node) leases(context.Context) ([]string, error) {
	files, err := filepath.Glob(n.path(dirLeases, "*", "*.*.*.*"))
	if err != nil {
		return nil, err
	}
	return label("CNI lease", files), nil
}

// podCgroups are those that kubelet makes for pods, and VMs' own.
func (n *Node) podCgroups(context.Context) ([]string, error) {
	dirs, err := cgroupFolders(n.Cgroup())
	if err != nil {
		return nil, err
	}
	return label("cgroup", slices.DeleteFunc(dirs, func(dir string) bool {
		name := filepath.Base(dir)
		return !strings.HasPrefix(name, "pod") && (!strings.HasPrefix(name, "ambipod-") || "/"+name == n.Cgroup())
	})), nil
}

// podMounts are volumes, container file systems and network namespaces.
func (n *Node) podMounts(context.Context) ([]string, error) {
	points, err := n.mounts()
	if err != nil {
		return nil, err
	}
	return label("mount", slices.DeleteFunc(points, func(point string) bool {
		return point == n.path(dirKubelet) || point == n.VMStateDir()
	})), nil
}

// podFiles are overlay disks, configuration ISOs and namespaces' files.
func (n *Node) podFiles(context.Context) ([]string, error) {
	var files []string
	for _, dir := range []string{
		n.path(dirVM, "vms"), n.path(dirRun, "vm", "vms"), n.path(dirRun, "vm", "netns"),
		n.path(dirContainerd, "state", "io.containerd.runtime.v2.task", "k8s.io"),
		n.path(dirContainerd, "state", "io.containerd.grpc.v1.cri", "netns"),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			files = append(files, filepath.Join(dir, entry.Name()))
		}
	}
	return label("file", files), nil
}

// podProcesses are those that name the node's root although they are no daemon
// of it: QEMU, shims, helpers.
func (n *Node) podProcesses(context.Context) ([]string, error) {
	processes, err := n.ProcessesNaming(n.root + "/")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, p := range processes {
		if !n.isDaemon(p) {
			lines = append(lines, strconv.Itoa(p.PID)+" "+commandLine(p.PID))
		}
	}
	return label("process", lines), nil
}

func (n *Node) isDaemon(p process.Process) bool {
	return slices.ContainsFunc(slices.Concat(order(), n.added(), []string{Virtlogd}), func(name string) bool { return n.Process(name) == p })
}

// ProcessesNaming lists the processes in the node's network namespace whose
// command line contains text. There are none without the namespace.
func (n *Node) ProcessesNaming(text string) ([]process.Process, error) {
	home, err := os.Stat(namespacePath(n.id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of the node: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []process.Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := process.Find(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		// Looked at before Alive: so it is p that is looked at.
		its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil && os.SameFile(home, its) && strings.Contains(commandLine(pid), text) && p.Alive() {
			found = append(found, p)
		}
	}
	return found, nil
}

func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // it ended meanwhile
	}
	return string(bytes.TrimSpace(bytes.ReplaceAll(data, []byte{0}, []byte{' '})))
}

func label(kind string, names []string) []string {
	var lines []string
	for _, name := range names {
		lines = append(lines, kind+": "+name)
	}
	return lines
}

// run returns what a program printed; an error quotes what it complained about.
func run(ctx context.Context, program string, args ...string) ([]byte, error) {
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("run %s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out, nil
}
