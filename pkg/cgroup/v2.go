package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mountpoint is where the unified hierarchy is mounted (cgroups(7)).
const mountpoint = "/sys/fs/cgroup"

// hierarchy is where a unified hierarchy is mounted.
type hierarchy string

func load2(group string) (*cgroup2.Manager, error) { return hierarchy(mountpoint).load(group) }

// load checks what cgroup2.Load does not: that the group exists.
func (h hierarchy) load(group string) (*cgroup2.Manager, error) {
	if _, err := os.Stat(filepath.Join(string(h), group)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return cgroup2.Load(group, cgroup2.WithMountpoint(string(h)))
}

func (h hierarchy) read(group string) (Stats, error) {
	manager, err := h.load(group)
	if err != nil {
		return Stats{}, err
	}
	metrics, err := manager.Stat()
	if err != nil {
		return Stats{}, err
	}
	cpu, memory := metrics.GetCPU(), metrics.GetMemory()
	ceiling, err := h.ceiling(group, memory.GetUsageLimit())
	if err != nil {
		return Stats{}, err
	}
	return Stats{
		CPU:              microseconds(cpu.GetUsageUsec()),
		UserCPU:          microseconds(cpu.GetUserUsec()),
		SystemCPU:        microseconds(cpu.GetSystemUsec()),
		Periods:          cpu.GetNrPeriods(),
		ThrottledPeriods: cpu.GetNrThrottled(),
		Throttled:        microseconds(cpu.GetThrottledUsec()),
		Memory:           memory.GetUsage(),
		WorkingSet:       less(memory.GetUsage(), memory.GetInactiveFile()),
		RSS:              memory.GetAnon(),
		Cache:            memory.GetFile(),
		MappedFile:       memory.GetFileMapped(),
		ActiveFile:       memory.GetActiveFile(),
		InactiveFile:     memory.GetInactiveFile(),
		Kernel:           memory.GetKernelStack() + memory.GetSlab() + memory.GetSock(),
		Swap:             memory.GetSwapUsage(),
		MaxMemory:        memory.GetMaxUsage(),
		MemoryLimit:      limit(ceiling),
		LimitHits:        metrics.GetMemoryEvents().GetMax(),
		PageFaults:       memory.GetPgfault(),
		MajorPageFaults:  memory.GetPgmajfault(),
		OOMKills:         metrics.GetMemoryEvents().GetOomKill(),
		Threads:          metrics.GetPids().GetCurrent(),
		MaxThreads:       limit(metrics.GetPids().GetLimit()),
	}, nil
}

// ceiling is the smaller of a group's own memory limit and its parent's: a VM's
// group has none of its own, and above the pod's are those of whole classes of pods.
func (h hierarchy) ceiling(group string, own uint64) (uint64, error) {
	parents, err := h.memoryLimit(path.Dir(group))
	return min(own, parents), err
}

func (h hierarchy) update(group string, resources *specs.LinuxResources) error {
	manager, err := h.load(group)
	if err != nil {
		return err
	}
	return manager.Update(unifiedResources(resources))
}

// unifiedResources translates to cgroup v2's terms. The library writes a quota of -1 as
// it is, which the kernel refuses, and none without a period.
func unifiedResources(resources *specs.LinuxResources) *cgroup2.Resources {
	out := cgroup2.ToResources(resources)
	if resources.CPU == nil || resources.CPU.Quota == nil {
		return out
	}
	quota := resources.CPU.Quota
	if *quota < 0 {
		quota = nil // "max"
	}
	out.CPU.Max = cgroup2.NewCPUMax(quota, resources.CPU.Period)
	return out
}

func microseconds(n uint64) time.Duration {
	return duration(n * uint64(time.Microsecond))
}

// memoryLimit returns the limit of an existing group, the largest number for none.
func memoryLimit(group string) (uint64, error) {
	if !unified() {
		return memoryLimit1(group)
	}
	return hierarchy(mountpoint).memoryLimit(group)
}

func (h hierarchy) memoryLimit(group string) (uint64, error) {
	if group == "/" {
		return math.MaxUint64, nil
	}
	manager, err := h.load(group)
	if err != nil {
		return 0, err
	}
	metrics, err := manager.Stat()
	if err != nil {
		return 0, err
	}
	return metrics.GetMemory().GetUsageLimit(), nil
}
