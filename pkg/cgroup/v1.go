package cgroup

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
)

func load1(group string) (cgroup1.Cgroup, error) {
	control, err := cgroup1.Load(cgroup1.StaticPath(group))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return control, err
}

func read1(group string) (Stats, error) {
	control, err := load1(group)
	if err != nil {
		return Stats{}, err
	}
	metrics, err := control.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return Stats{}, err
	}
	cpu, memory, oom := metrics.GetCPU().GetUsage(), metrics.GetMemory(), metrics.GetMemoryOomControl()
	return Stats{
		CPU:             duration(cpu.GetTotal()),
		Memory:          memory.GetUsage().GetUsage(),
		WorkingSet:      less(memory.GetUsage().GetUsage(), memory.GetTotalInactiveFile()),
		RSS:             memory.GetTotalRSS(),
		PageFaults:      memory.GetTotalPgFault(),
		MajorPageFaults: memory.GetTotalPgMajFault(),
		OOMKills:        oom.GetOomKill(),
	}, nil
}

func memoryLimit1(group string) (uint64, error) {
	control, err := load1(group)
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
