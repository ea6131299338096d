// Package cgroup puts a VM's QEMU into a control group below its pod's, limits it
// there and reads what it uses.
//
// A Group is named by its path below the hierarchy's root, the same in every
// controller; Path makes one from what kubelet says about the pod. Both cgroup v1
// (also hybrid) and v2 are served, by github.com/containerd/cgroups. The guest's
// memory is limited by its size, so a group of ours carries no memory limit of its
// own; the pod's does, and RaiseMemory makes room there for QEMU itself.
//
// All functions are safe for concurrent use on different groups. Create and
// Delete may be repeated.
package cgroup

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Limits are the CPU limits of a group, in the CRI's terms (LinuxContainerResources).
type Limits struct {
	Shares int64  // relative weight, 1024 per core; 0 leaves the kernel's default
	Quota  int64  // µs of CPU time per period; 0 or less is no limit
	Period int64  // µs; 0 leaves the kernel's default
	CPUSet string // list of CPUs, "" for all of the parent's
	MemSet string // list of memory nodes, likewise
}

// Path returns the group of one VM below its pod's cgroup parent as kubelet names
// it: a path with the cgroupfs driver, or a slice ("kubepods-podX.slice") with the
// systemd driver, whose nesting follows its dashes (systemd.slice(5)). A pod without
// a parent, as people make them by hand, has its groups at the hierarchy's root.
func Path(parent, id string) string { return path.Join(Parent(parent), "ambipod-"+id) }

// Parent returns the group that kubelet means by a pod's cgroup parent.
func Parent(parent string) string {
	if strings.HasSuffix(parent, ".slice") {
		parent = slicePath(path.Base(parent))
	}
	return path.Join("/", parent)
}

// slicePath expands "a-b.slice" to "/a.slice/a-b.slice".
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	nested := "/"
	for i, r := range name {
		if r == '-' {
			nested = path.Join(nested, name[:i]+".slice")
		}
	}
	return path.Join(nested, slice)
}

// Create makes a group, or takes the existing one, and sets its limits.
func Create(group string, limits Limits) error {
	if unified() {
		if _, err := cgroup2.NewManager(mountpoint, group, unifiedResources(limits.spec())); err != nil {
			return fmt.Errorf("create cgroup %s: %w", group, err)
		}
		return nil
	}
	// cgroup1.New sets limits of a new group alone.
	if _, err := cgroup1.New(cgroup1.StaticPath(group), &specs.LinuxResources{}, cgroup1.WithHierarchy(subsystems1)); err != nil {
		return fmt.Errorf("create cgroup %s: %w", group, err)
	}
	return Update(group, limits)
}

// Update changes the limits of a group; errdefs.ErrNotFound if there is none.
func Update(group string, limits Limits) error { return update(group, limits.spec()) }

func update(group string, resources *specs.LinuxResources) error {
	var err error
	if unified() {
		err = hierarchy(mountpoint).update(group, resources)
	} else {
		var control cgroup1.Cgroup
		if control, err = load1(group, subsystems1); err == nil {
			err = control.Update(resources)
		}
	}
	if err != nil {
		return fmt.Errorf("set limits of cgroup %s: %w", group, err)
	}
	return nil
}

// Add moves a process, with all of its threads, into a group.
func Add(group string, pid int) error {
	var err error
	if unified() {
		var manager *cgroup2.Manager
		if manager, err = load2(group); err == nil {
			err = manager.AddProc(uint64(pid)) //nolint:gosec // process IDs are positive
		}
	} else {
		var control cgroup1.Cgroup
		if control, err = load1(group, subsystems1); err == nil {
			err = errors.Join(control.Add(cgroup1.Process{Pid: pid}), addHybrid(group, pid))
		}
	}
	if err != nil {
		return fmt.Errorf("move process %d into cgroup %s: %w", pid, group, err)
	}
	return nil
}

// Delete removes a group; it is no error if there is none. It fails while
// processes are in it.
func Delete(group string) error {
	var err error
	if unified() {
		var manager *cgroup2.Manager
		if manager, err = load2(group); err == nil {
			err = manager.Delete()
		}
	} else {
		var control cgroup1.Cgroup
		if control, err = load1(group, subsystems1); err == nil {
			err = control.Delete()
		}
	}
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return fmt.Errorf("delete cgroup %s: %w", group, err)
	}
	return nil
}

// RaiseMemory lifts the memory limit of a VM's parent (its pod) to at least so
// many bytes and reports whether it did. A parent without a limit, or with a
// higher one, stays as it is.
//
// It is for pods whose spec declares no overhead (KEP-688): kubelet then limits the
// pod to the guest's memory alone, and QEMU would be killed as soon as the guest
// used all that it was given.
func RaiseMemory(group string, bytes int64) (bool, error) {
	parent := path.Dir(group)
	limit, err := memoryLimit(parent)
	if err != nil {
		return false, fmt.Errorf("read memory limit of cgroup %s: %w", parent, err)
	}
	if limit >= uint64(bytes) { //nolint:gosec // sizes are positive
		return false, nil
	}
	return true, update(parent, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}})
}

// spec translates to the OCI's terms, leaving out what is not set.
func (l Limits) spec() *specs.LinuxResources {
	cpu := &specs.LinuxCPU{Cpus: l.CPUSet, Mems: l.MemSet}
	if l.Shares > 0 {
		shares := uint64(l.Shares)
		cpu.Shares = &shares
	}
	if l.Period > 0 {
		period := uint64(l.Period)
		cpu.Period = &period
	}
	if l.Quota > 0 {
		cpu.Quota = &l.Quota
	} else {
		unlimited := int64(-1)
		cpu.Quota = &unlimited
	}
	return &specs.LinuxResources{CPU: cpu}
}

func unified() bool { return cgroups.Mode() == cgroups.Unified }
