package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

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
	const nanosecondsPerMicrosecond = 1000
	memory := metrics.GetMemory()
	return Stats{
		CPU:             duration(metrics.GetCPU().GetUsageUsec() * nanosecondsPerMicrosecond),
		Memory:          memory.GetUsage(),
		WorkingSet:      less(memory.GetUsage(), memory.GetInactiveFile()),
		RSS:             memory.GetAnon(),
		PageFaults:      memory.GetPgfault(),
		MajorPageFaults: memory.GetPgmajfault(),
		OOMKills:        metrics.GetMemoryEvents().GetOomKill(),
	}, nil
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
