package cgroup

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what the processes of a group and of all below it use, in bytes where it
// is memory. What the kernel or its version of control groups does not count is 0.
type Stats struct {
	CPU              time.Duration // since the group was made
	UserCPU          time.Duration
	SystemCPU        time.Duration
	Periods          uint64 // of CPU time that were handed out
	ThrottledPeriods uint64 // of which so many were used up
	Throttled        time.Duration

	Memory          uint64 // charged, page cache included
	WorkingSet      uint64 // Memory less the page cache that can be dropped at once
	RSS             uint64 // anonymous
	Cache           uint64
	MappedFile      uint64
	ActiveFile      uint64
	InactiveFile    uint64
	Kernel          uint64
	Swap            uint64
	MaxMemory       uint64 // the most that was charged at a time
	MemoryLimit     uint64 // that holds for the group, perhaps its ancestors'; 0 for none
	LimitHits       uint64 // how often that limit was in the way
	PageFaults      uint64
	MajorPageFaults uint64
	OOMKills        uint64 // processes of the group that the kernel killed for memory

	Processes  uint64
	Threads    uint64
	MaxThreads uint64 // 0 for no limit
}

// noLimit is where limits begin to mean none: the kernel rounds its largest number
// down to whole pages, and no machine has so much.
const noLimit = 1 << 62

// ReadUse returns what a group uses of CPU time and memory: CPU, Memory, WorkingSet, RSS,
// Swap, MemoryLimit and what memory.stat tells; the rest may be missing. It takes a
// fraction of Read's time. errdefs.ErrNotFound if there is no such group.
func ReadUse(group string) (Stats, error) {
	return read(group, func(group string) (Stats, error) {
		folders, err := use1()
		if err != nil {
			return Stats{}, err
		}
		return folders.read(group)
	})
}

// Read returns all that a group uses; errdefs.ErrNotFound if there is none.
func Read(group string) (Stats, error) {
	stats, err := read(group, read1)
	if err != nil {
		return Stats{}, err
	}
	members, err := processes(group, true)
	if err != nil {
		return Stats{}, fmt.Errorf("count processes of cgroup %s: %w", group, err)
	}
	stats.Processes = uint64(len(members))
	return stats, nil
}

// read reads a group, by means of read1 on a machine with version 1.
func read(group string, read1 func(string) (Stats, error)) (stats Stats, err error) {
	if unified() {
		stats, err = hierarchy(mountpoint).read(group)
	} else {
		stats, err = read1(group)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("read use of cgroup %s: %w", group, err)
	}
	return stats, nil
}

// Members lists the processes of a group and of all below it; errdefs.ErrNotFound if
// there is none.
func Members(group string) ([]int, error) {
	members, err := processes(group, true)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", group, err)
	}
	return members, nil
}

// limit is a limit as people know it: 0 for none.
func limit(bytes uint64) uint64 {
	if bytes >= noLimit {
		return 0
	}
	return bytes
}

// OpenFiles counts the file descriptors of all processes of a group.
func OpenFiles(group string) (uint64, error) {
	members, err := Members(group)
	if err != nil {
		return 0, err
	}
	var count uint64
	for _, pid := range members {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("count files of cgroup %s: %w", group, err)
		}
		count += uint64(len(open))
	}
	return count, nil
}
