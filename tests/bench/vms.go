package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// vmRounds is how often a VM is started on each side: a start takes half a second
// and more, and neighbours on the machine make it vary.
const vmRounds = 12

// vmHandler is the runtime handler of VM pods.
const vmHandler = "vm"

// measureVMs compares the start of a VM pod with virsh's start of its domain.
func measureVMs(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "vms", Base: "virsh create", Ours: "VM pod",
		Title: fmt.Sprintf("Start of a VM whose image is present, medians of %d alternating starts", vmRounds),
	}
	v, err := startVMBench(ctx, e, "bench-vms")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.stop(ctx)) }()
	share := filepath.Join(v.node.Root(), "bench-share")
	if err := os.Mkdir(share, 0o755); err != nil { //nolint:gosec // a folder that the guest shares
		return s, fmt.Errorf("make folder to share: %w", err)
	}
	const (
		wholeStart limit = 300
		startAlone limit = 150
	)
	for _, k := range []struct {
		what string
		spec vmSpec
	}{
		{"a plain VM", vmSpec{}},
		{"a VM with q35, 2 CPUs, TPM, watchdog and a shared folder", equippedVM(share)},
	} {
		var whole, start pair
		for i := range vmRounds + 1 {
			took, err := v.round(ctx, k.spec)
			if err != nil {
				return s, err
			}
			if i > 0 { // the first start fills libvirt's and the kernel's caches
				whole.base, whole.ours = append(whole.base, took.virsh), append(whole.ours, took.whole)
				start.base, start.ours = append(start.base, took.virsh), append(start.ours, took.start)
			}
			_, _ = fmt.Fprintf(e.out, "    %s: start %d of %d done\n", k.what, i, vmRounds)
		}
		s.Rows = append(s.Rows,
			differenceRow(k.what+": RunPodSandbox to StartContainer's answer", whole, wholeStart),
			differenceRow(k.what+": StartContainer alone", start, startAlone))
	}
	return s, nil
}

// equippedVM has all that makes a start longer.
func equippedVM(share string) vmSpec {
	return vmSpec{
		annotations: map[string]string{
			"vm.ambipod.io/machine": "q35", "vm.ambipod.io/tpm": "2.0", "vm.ambipod.io/watchdog": "reset",
			"vm.ambipod.io/serial-number": "bench", "vm.ambipod.io/vcpu-count": "2",
		},
		mounts: []*runtimeapi.Mount{{ContainerPath: "/share", HostPath: share}},
	}
}

// differenceRow reports how much longer ours takes, and the spread of the
// difference's middle half.
func differenceRow(what string, p pair, atMost limit) row {
	const lower, upper = 0.25, 0.75
	base, ours := quantileOf(p.base, 0.5), quantileOf(p.ours, 0.5)
	above := milliseconds(ours - base)
	d := p.differences()
	r := row{
		What: what, Base: formatMS(milliseconds(base)), Ours: formatMS(milliseconds(ours)), Samples: len(p.base),
		Ratio:  fmt.Sprintf("%+.0f ms", above),
		Spread: fmt.Sprintf("%+.0f … %+.0f ms", milliseconds(quantileOf(d, lower)), milliseconds(quantileOf(d, upper))),
	}
	return atMost.check(r, above, "+%.0f ms")
}

// times is how long the parts of a round took.
type times struct {
	whole time.Duration // RunPodSandbox to StartContainer
	start time.Duration // StartContainer
	virsh time.Duration // virsh create
}

// round starts a VM pod, removes it, and has virsh start its domain in between,
// while its disks are there and nobody uses them.
func (v vmBench) round(ctx context.Context, spec vmSpec) (took times, err error) {
	began := time.Now()
	vm, err := v.create(ctx, spec)
	if err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, v.remove(ctx, vm)) }()
	if took.start, err = timed(func() error { return v.start(ctx, vm) }); err != nil {
		return took, err
	}
	took.whole = time.Since(began)
	twin, err := v.describe(ctx)
	if err != nil {
		return took, err
	}
	if _, err := v.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: vm.container}); err != nil {
		return took, fmt.Errorf("stop the VM: %w", err)
	}
	took.virsh, err = timed(func() error { return v.createDomain(ctx, twin) })
	if err != nil {
		return took, err
	}
	_, err = v.virsh(ctx, "destroy", twin.Name)
	return took, err
}
