package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// cgroupPatterns are where containers without a cgroup parent go: critest sets
// none when the driver is cgroupfs, and containerd then uses its namespace's name
// in every hierarchy of version 1, or in the one of version 2.
func cgroupPatterns() []string {
	return []string{"/sys/fs/cgroup/k8s.io", "/sys/fs/cgroup/*/k8s.io"}
}

// cgroupSnapshot is the set of such cgroups that somebody else uses.
type cgroupSnapshot map[string]bool

func snapshotCgroups() (cgroupSnapshot, error) {
	found, err := listCgroups()
	if err != nil {
		return nil, err
	}
	s := cgroupSnapshot{}
	for _, dir := range found {
		s[dir] = true
	}
	return s, nil
}

// removeNew removes the cgroups that were not there at the snapshot, unless
// somebody has put containers into them meanwhile.
func (s cgroupSnapshot) removeNew() error {
	found, err := listCgroups()
	errs := []error{err}
	for _, dir := range found {
		if s[dir] {
			continue
		}
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

func listCgroups() ([]string, error) {
	var found []string
	for _, pattern := range cgroupPatterns() {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		found = append(found, dirs...)
	}
	return found, nil
}
