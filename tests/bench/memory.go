package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// measureVMMemory looks at what running VMs cost beside their QEMUs. The guests are
// as small as can be: what they do does not matter here, how many there are does.
func measureVMMemory(ctx context.Context, e environment) (_ section, err error) {
	const (
		vms             = 20
		sector          = "sector.img"
		memory          = 64 << 20
		ownMemory limit = 2
	)
	s := section{Name: "memory", Title: "Memory of a running VM beside QEMU", Base: "-", Ours: "each VM"}
	v, err := startVMBench(ctx, e, "bench-memory")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.stop(ctx)) }()
	if err := bootsector.WriteDisk(ctx, filepath.Join(v.node.SiteDir(), sector)); err != nil {
		return s, err
	}
	spec := vmSpec{image: "vm.ambipod.io/http/127.0.0.1/" + sector + ":latest", memory: memory}
	if err := v.pull(ctx, spec.image); err != nil {
		return s, err
	}
	first, err := v.running(ctx, spec) // what the first VM needs once is no VM's
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.remove(ctx, first)) }()
	if err := settle(ctx); err != nil {
		return s, err
	}
	before, err := v.daemons()
	if err != nil {
		return s, err
	}
	for i := range vms {
		vm, err := v.running(ctx, spec)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, v.remove(ctx, vm)) }()
		_, _ = fmt.Fprintf(e.out, "    VM %d of %d runs\n", i+1, vms)
	}
	if err := settle(ctx); err != nil {
		return s, err
	}
	after, err := v.daemons()
	if err != nil {
		return s, err
	}
	helpers, err := v.helpers(first)
	if err != nil {
		return s, err
	}
	const megabyte = 1e6
	each := float64(after-before)/vms/megabyte + float64(helpers)/megabyte
	s.Rows = append(s.Rows, ownMemory.check(row{
		What: fmt.Sprintf("growth of vmruntime and criproxy by %d VMs, and Ambipod's other processes of a VM", vms),
		Ours: fmt.Sprintf("%.2f MB", each), Samples: vms,
	}, each, "%.0f MB"))
	share := filepath.Join(v.node.Root(), "bench-share")
	if err := os.Mkdir(share, 0o755); err != nil { //nolint:gosec // a folder that the guest shares
		return s, fmt.Errorf("make folder to share: %w", err)
	}
	equipped := equippedVM(share)
	equipped.image, equipped.memory = spec.image, spec.memory
	vm, err := v.running(ctx, equipped)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.remove(ctx, vm)) }()
	others, err := v.helpers(vm)
	s.Rows = append(s.Rows, row{
		What: "virtiofsd and swtpm of a VM with one shared folder and a TPM, which are not Ambipod's programs",
		Ours: fmt.Sprintf("%.2f MB", float64(others)/megabyte), Samples: 1,
	})
	return s, err
}

// settle gives garbage collectors time.
func settle(ctx context.Context) error {
	const quiet = 10 * time.Second
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// running makes and starts a VM.
func (v vmBench) running(ctx context.Context, spec vmSpec) (vmPod, error) {
	vm, err := v.create(ctx, spec)
	if err != nil {
		return vm, err
	}
	if err := v.start(ctx, vm); err != nil {
		return vm, errors.Join(err, v.remove(ctx, vm))
	}
	return vm, nil
}

// daemons is the resident memory of vmruntime and criproxy.
func (v vmBench) daemons() (int64, error) {
	var sum int64
	for _, name := range []string{node.VMRuntime, node.CRIProxy} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.node.Process(name).PID))
		if err != nil {
			return 0, fmt.Errorf("read memory of %s: %w", name, err)
		}
		bytes, err := statusBytes(string(status), "VmRSS:")
		if err != nil {
			return 0, err
		}
		sum += bytes
	}
	return sum, nil
}

// helpers is the proportional memory of what is in a VM's control group beside QEMU.
func (v vmBench) helpers(vm vmPod) (int64, error) {
	_, id, _ := strings.Cut(vm.container, ".") // criproxy's prefix
	members, err := cgroup.Members(cgroup.Path(v.node.Cgroup(), id))
	if err != nil {
		return 0, err
	}
	if len(members) == 0 {
		return 0, fmt.Errorf("nothing is in the control group of VM %s: %w", id, errdefs.ErrNotFound)
	}
	var sum int64
	for _, pid := range members {
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		name, err := os.ReadFile(filepath.Join(proc, "comm"))
		if err != nil {
			return 0, fmt.Errorf("look at process %d of a VM: %w", pid, err)
		}
		if strings.HasPrefix(string(name), "qemu-system-x86") {
			continue
		}
		memory, err := os.ReadFile(filepath.Join(proc, "smaps_rollup"))
		if err != nil {
			return 0, fmt.Errorf("look at process %d of a VM: %w", pid, err)
		}
		bytes, err := statusBytes(string(memory), "Pss:")
		if err != nil {
			return 0, err
		}
		sum += bytes
	}
	return sum, nil
}
