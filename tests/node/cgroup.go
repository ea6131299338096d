package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/ambipod/ambipod/tests/process"
)

// hierarchies lists where this machine's cgroup hierarchies are mounted, and
// whether all controllers are in the one of version 2.
func hierarchies() (mounts []string, unified bool, err error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, false, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	defer func() { _ = file.Close() }()
	unified = true
	for lines := bufio.NewScanner(file); lines.Scan(); {
		head, tail, _ := strings.Cut(lines.Text(), " - ")
		kind, _, _ := strings.Cut(tail, " ")
		if kind != "cgroup" && kind != "cgroup2" {
			continue
		}
		unified = unified && kind == "cgroup2"
		const mountPoint = 4
		mounts = append(mounts, strings.Fields(head)[mountPoint])
	}
	if len(mounts) == 0 {
		return nil, false, fmt.Errorf("list cgroup hierarchies: none is mounted: %w", os.ErrNotExist)
	}
	return mounts, unified, nil
}

// makeCgroups makes the cgroup in every hierarchy, with all that children need.
func makeCgroups(name string) error {
	mounts, unified, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		dir := filepath.Join(mount, name)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as all cgroups are
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := inheritCpuset(mount, dir); err != nil {
			return err
		}
		if unified {
			if err := delegate(mount, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCpuset fills in what version 1 leaves empty and then refuses tasks for.
func inheritCpuset(parentDir, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parentDir, file))
		if errors.Is(err, os.ErrNotExist) {
			return nil // another controller, or version 2's root
		}
		if err != nil {
			return fmt.Errorf("read cpuset of the machine: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil { //nolint:gosec // exists already
			return fmt.Errorf("set cpuset of cgroup: %w", err)
		}
	}
	return nil
}

// delegate hands version 2's controllers down, as far as the machine has them.
func delegate(dirs ...string) error {
	for _, dir := range dirs {
		have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("read controllers of cgroup: %w", err)
		}
		for controller := range strings.FieldsSeq(string(have)) {
			file := filepath.Join(dir, "cgroup.subtree_control")
			if err := os.WriteFile(file, []byte("+"+controller), 0); err != nil {
				return fmt.Errorf("delegate cgroup controller %s: %w", controller, err)
			}
		}
	}
	return nil
}

// cgroupFolders lists the cgroups below and including name in all hierarchies,
// children before parents.
func cgroupFolders(name string) ([]string, error) {
	mounts, _, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, mount := range mounts {
		err := filepath.WalkDir(filepath.Join(mount, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil // it went while we looked
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
	}
	slices.Reverse(dirs)
	return dirs, nil
}

// removeCgroups kills every process in the cgroup and removes it.
func removeCgroups(ctx context.Context, name string) error {
	return Until(ctx, "the node's cgroups are gone", func(ctx context.Context) error {
		dirs, err := cgroupFolders(name)
		if err != nil {
			return err
		}
		var errs []error
		for _, dir := range dirs {
			errs = append(errs, killMembers(ctx, dir))
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

func killMembers(ctx context.Context, dir string) error {
	members, err := cgroupMembers(dir)
	for _, p := range members {
		// A frozen member dies too.
		err = errors.Join(err, p.Signal(syscall.SIGKILL))
	}
	for _, p := range members {
		err = errors.Join(err, p.Wait(ctx))
	}
	return err
}

func cgroupMembers(dir string) ([]process.Process, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	var members []process.Process
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", dir, err)
		}
		p, err := process.Find(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		members = append(members, p)
	}
	return members, nil
}
