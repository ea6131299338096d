package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// folders1 are where the controllers are mounted that ReadUse looks into, "" for one
// that the machine lacks.
type folders1 struct{ cpu, memory string }

var use1 = sync.OnceValues(func() (folders folders1, err error) {
	chosen, err := choose(cgroup1.Cpuacct, cgroup1.Memory)
	for _, s := range chosen {
		controller, ok := s.(interface{ Path(string) string })
		if !ok {
			continue
		}
		if s.Name() == cgroup1.Memory {
			folders.memory = controller.Path("")
		} else {
			folders.cpu = controller.Path("")
		}
	}
	return folders, err
})

// read reads four files of a group, where the library reads fourteen.
func (folders folders1) read(group string) (stats Stats, err error) {
	if folders.cpu != "" {
		used, err := number1(path.Join(folders.cpu, group, "cpuacct.usage"))
		if err != nil {
			return Stats{}, err
		}
		stats.CPU = duration(used)
	}
	if folders.memory == "" {
		return stats, nil
	}
	dir := path.Join(folders.memory, group)
	if stats.Memory, err = number1(path.Join(dir, "memory.usage_in_bytes")); err != nil {
		return Stats{}, err
	}
	if err := stats.readMemory1(path.Join(dir, "memory.stat")); err != nil {
		return Stats{}, err
	}
	both, err := number1(path.Join(dir, "memory.memsw.usage_in_bytes"))
	if err == nil {
		stats.Swap = less(both, stats.Memory)
	} else if errdefs.IsNotFound(err) {
		err = nil // the kernel does not count swap
	}
	return stats, err
}

// readMemory1 takes from memory.stat what counts for the group and all below it.
func (s *Stats) readMemory1(file string) error {
	data, err := read1File(file)
	if err != nil {
		return err
	}
	var ceiling uint64
	fields := map[string]*uint64{
		"total_rss": &s.RSS, "total_cache": &s.Cache, "total_mapped_file": &s.MappedFile,
		"total_active_file": &s.ActiveFile, "total_inactive_file": &s.InactiveFile,
		"total_pgfault": &s.PageFaults, "total_pgmajfault": &s.MajorPageFaults,
		"hierarchical_memory_limit": &ceiling,
	}
	for line := range bytes.Lines(data) {
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		field, wanted := fields[string(name)]
		if !wanted {
			continue
		}
		if *field, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return fmt.Errorf("%s of %s: %w: %w", name, file, errdefs.ErrDataLoss, err)
		}
	}
	s.MemoryLimit = limit(ceiling)
	s.WorkingSet = less(s.Memory, s.InactiveFile)
	return nil
}

func number1(file string) (uint64, error) {
	data, err := read1File(file)
	if err != nil {
		return 0, err
	}
	value, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %w", file, errdefs.ErrDataLoss, err)
	}
	return value, nil
}

// read1File reads a file of a group; of one that is removed meanwhile the kernel says
// that there is no such device.
func read1File(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return data, err
}
