// Package defaultcgroup cleans up where containerd puts containers whose pod
// names no cgroup parent: a cgroup called like containerd's namespace in every
// hierarchy of version 1, or in the one of version 2. critest names no parent
// when the driver is cgroupfs, and containerd leaves that cgroup behind.
//
// Concurrency: a Snapshot may be used from anywhere; several programs may clean
// up at once, for a cgroup with containers cannot be removed.
package defaultcgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// namespace is containerd's for the CRI.
const namespace = "k8s.io"

// Snapshot is the set of such cgroups that somebody else has.
type Snapshot struct {
	root string
	had  map[string]bool
}

// Take looks at this machine's hierarchies.
func Take() (Snapshot, error) { return take("/sys/fs/cgroup") }

func take(root string) (Snapshot, error) {
	s := Snapshot{root: root, had: map[string]bool{}}
	found, err := s.list()
	for _, dir := range found {
		s.had[dir] = true
	}
	return s, err
}

// RemoveNew removes the cgroups that were not there at the snapshot, unless
// somebody has put containers into them meanwhile.
func (s Snapshot) RemoveNew() error {
	found, err := s.list()
	errs := []error{err}
	for _, dir := range found {
		if s.had[dir] {
			continue
		}
		err := syscall.Rmdir(dir)
		if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

func (s Snapshot) list() ([]string, error) {
	var found []string
	// Version 2 is mounted on the root, version 1 below it.
	for _, pattern := range []string{namespace, filepath.Join("*", namespace)} {
		dirs, err := filepath.Glob(filepath.Join(s.root, pattern))
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, dir := range dirs {
			if info, err := os.Stat(dir); err == nil && info.IsDir() {
				found = append(found, dir)
			}
		}
	}
	return found, nil
}
