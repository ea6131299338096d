package cgroup

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
)

// What is looked for once is kept: it means reading all mounts, and statistics of a
// hundred VMs are asked for every few seconds.
var (
	// subsystems1 are the controllers that this machine has.
	subsystems1 = sync.OnceValues(cgroup1.Default)
	// counters1 are those whose figures make up Stats.
	counters1 = sync.OnceValues(func() ([]cgroup1.Subsystem, error) {
		return choose(cgroup1.Cpu, cgroup1.Cpuacct, cgroup1.Memory, cgroup1.Pids)
	})
)

func choose(names ...cgroup1.Name) ([]cgroup1.Subsystem, error) {
	all, err := subsystems1()
	var chosen []cgroup1.Subsystem
	for _, s := range all {
		if slices.Contains(names, s.Name()) {
			chosen = append(chosen, s)
		}
	}
	return chosen, err
}

// load1 finds a group in all controllers, or in those of a hierarchy.
func load1(group string, of cgroup1.Hierarchy) (cgroup1.Cgroup, error) {
	control, err := cgroup1.Load(cgroup1.StaticPath(group), cgroup1.WithHierarchy(of))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return control, err
}

func read1(group string) (Stats, error) {
	control, err := load1(group, counters1)
	if err != nil {
		return Stats{}, err
	}
	metrics, err := control.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return Stats{}, err
	}
	memory, swap := metrics.GetMemory(), metrics.GetMemory().GetSwap().GetUsage()
	stats := Stats{
		CPU:              duration(metrics.GetCPU().GetUsage().GetTotal()),
		UserCPU:          duration(metrics.GetCPU().GetUsage().GetUser()),
		SystemCPU:        duration(metrics.GetCPU().GetUsage().GetKernel()),
		Periods:          metrics.GetCPU().GetThrottling().GetPeriods(),
		ThrottledPeriods: metrics.GetCPU().GetThrottling().GetThrottledPeriods(),
		Throttled:        duration(metrics.GetCPU().GetThrottling().GetThrottledTime()),
		Memory:           memory.GetUsage().GetUsage(),
		WorkingSet:       less(memory.GetUsage().GetUsage(), memory.GetTotalInactiveFile()),
		RSS:              memory.GetTotalRSS(),
		Cache:            memory.GetTotalCache(),
		MappedFile:       memory.GetTotalMappedFile(),
		ActiveFile:       memory.GetTotalActiveFile(),
		InactiveFile:     memory.GetTotalInactiveFile(),
		Kernel:           memory.GetKernel().GetUsage(),
		MaxMemory:        memory.GetUsage().GetMax(),
		MemoryLimit:      limit(memory.GetHierarchicalMemoryLimit()),
		LimitHits:        memory.GetUsage().GetFailcnt(),
		PageFaults:       memory.GetTotalPgFault(),
		MajorPageFaults:  memory.GetTotalPgMajFault(),
		OOMKills:         metrics.GetMemoryOomControl().GetOomKill(),
		Threads:          metrics.GetPids().GetCurrent(),
		MaxThreads:       limit(metrics.GetPids().GetLimit()),
	}
	if swap > 0 { // what v1 counts there is memory and swap together
		stats.Swap = less(swap, stats.Memory)
	}
	return stats, nil
}

func memoryLimit1(group string) (uint64, error) {
	control, err := load1(group, counters1)
	if err != nil {
		return 0, err
	}
	metrics, err := control.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return 0, err
	}
	return metrics.GetMemory().GetUsage().GetLimit(), nil
}

// less is a - b, but 0 where the two were read at different moments and b is more.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// duration clamps the kernel's unsigned nanoseconds; 292 years fit.
func duration(ns uint64) time.Duration {
	return time.Duration(min(ns, math.MaxInt64))
}
