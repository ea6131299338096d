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
)

// mountpoint is where the unified hierarchy is mounted (cgroups(7)).
const mountpoint = "/sys/fs/cgroup"

// load2 checks what cgroup2.Load does not: that the group exists.
func load2(group string) (*cgroup2.Manager, error) {
	if _, err := os.Stat(filepath.Join(mountpoint, group)); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return cgroup2.Load(group, cgroup2.WithMountpoint(mountpoint))
}

func read2(group string) (Stats, error) {
	manager, err := load2(group)
	if err != nil {
		return Stats{}, err
	}
	metrics, err := manager.Stat()
	if err != nil {
		return Stats{}, err
	}
	cpu, memory := metrics.GetCPU(), metrics.GetMemory()
	ceiling, err := ceiling2(group, memory.GetUsageLimit())
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

// ceiling2 is the smaller of a group's own memory limit and its parent's: a VM's
// group has none of its own, and above the pod's are those of whole classes of pods.
func ceiling2(group string, own uint64) (uint64, error) {
	parents, err := memoryLimit(path.Dir(group))
	return min(own, parents), err
}

func microseconds(n uint64) time.Duration {
	return duration(n * uint64(time.Microsecond))
}

// memoryLimit returns the limit of an existing group, the largest number for none.
func memoryLimit(group string) (uint64, error) {
	if !unified() {
		return memoryLimit1(group)
	}
	if group == "/" {
		return math.MaxUint64, nil
	}
	manager, err := load2(group)
	if err != nil {
		return 0, err
	}
	metrics, err := manager.Stat()
	if err != nil {
		return 0, err
	}
	return metrics.GetMemory().GetUsageLimit(), nil
}
