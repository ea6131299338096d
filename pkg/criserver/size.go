package criserver

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cgroup"
)

const (
	// defaultMemory is the guest's memory where the pod sets no limit, as in Virtlet.
	defaultMemory = 1 << 30
	// leastMemory is refused to go below: smaller guests were seen to hang before
	// their first line of output (2026-11, Debian's cloud kernel 6.1).
	leastMemory = 64 << 20

	// maxMemory is beyond what any machine has, and keeps sums of sizes from overflowing.
	maxMemory = 1 << 46

	// defaultPeriod is the kernel's CFS period in µs (cgroup v2, cpu.max).
	defaultPeriod = 100_000

	// qemuOverhead is what QEMU needs beside the guest's memory: 67 MiB of its own,
	// whatever the guest's size, and under software emulation the translation cache
	// of up to 112 MiB (see libvirttools). TestOverheadSuffices of tests/e2e measures
	// it as the peak of VmHWM for guests of 128 MiB to 1 GiB that have touched all of
	// their memory (2026-11, QEMU 7.2); the rest is for servers of shared folders, at
	// 2 MiB each.
	qemuOverhead = 192 << 20
)

// size is how large a VM is.
type size struct {
	memory    int64 // bytes
	vcpus     int
	pageBytes int64 // of the pages behind the memory; 0 for the node's usual ones
}

// sizeOf derives a VM's size from its container's limits and the pod's annotations.
func sizeOf(resources *runtimeapi.LinuxContainerResources, settings annotations.Settings) (size, error) {
	pageBytes, memory, err := hugePagesOf(resources)
	if err != nil {
		return size{}, err
	}
	if memory == 0 {
		memory = resources.GetMemoryLimitInBytes()
	}
	if memory == 0 {
		memory = defaultMemory
	}
	if memory < leastMemory {
		return size{}, fmt.Errorf("memory limit of %d bytes is too small for a VM, set at least %d Mi: %w",
			memory, leastMemory>>20, errdefs.ErrInvalidArgument)
	}
	vcpus := settings.VCPUs
	if vcpus == 0 {
		vcpus = cores(resources)
	}
	return size{memory: memory, vcpus: vcpus, pageBytes: pageBytes}, nil
}

// leastLimit is the least memory that the pod of a VM must be allowed to use. Huge
// pages are not counted there.
func leastLimit(vm container, resources *runtimeapi.LinuxContainerResources) int64 {
	if _, huge, err := hugePagesOf(resources); err == nil && huge > 0 {
		return qemuOverhead
	}
	return vm.MemoryBytes + qemuOverhead
}

// cores rounds a CPU limit up to whole CPUs; 1 without a limit.
func cores(resources *runtimeapi.LinuxContainerResources) int {
	quota, period := resources.GetCpuQuota(), resources.GetCpuPeriod()
	if quota <= 0 {
		return 1
	}
	if period <= 0 {
		period = defaultPeriod
	}
	return int((quota + period - 1) / period)
}

func cgroupLimits(resources *runtimeapi.LinuxContainerResources) cgroup.Limits {
	return cgroup.Limits{
		Shares: resources.GetCpuShares(),
		Quota:  resources.GetCpuQuota(),
		Period: resources.GetCpuPeriod(),
		CPUSet: resources.GetCpusetCpus(),
		MemSet: resources.GetCpusetMems(),
	}
}
