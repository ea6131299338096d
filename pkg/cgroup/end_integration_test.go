//go:build integration

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestEnd: what runs in a group ends with it, and nothing else does.
func TestEnd(t *testing.T) {
	parent := fmt.Sprintf("/ambipod-end-%d", os.Getpid())
	group := Path(parent, "vm")
	for _, g := range []string{parent, group} {
		if err := Create(g, Limits{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := Delete(parent); err != nil {
			t.Error(err)
		}
	})
	inside, outside := start(t, group), start(t, parent)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 { // may be repeated
		if err := End(ctx, group); err != nil {
			t.Fatal(err)
		}
	}
	if err := inside.Wait(); err == nil {
		t.Error("the process of the group was not killed")
	}
	if err := outside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process of the parent is gone: %v", err)
	}
	if _, err := Read(group); err == nil {
		t.Error("the group is still there")
	}
}

// TestEndAfterHalfAnEnd: with v1 each controller's part of a group goes by itself.
func TestEndAfterHalfAnEnd(t *testing.T) {
	group := fmt.Sprintf("/ambipod-half-%d", os.Getpid())
	if err := Create(group, Limits{}); err != nil {
		t.Fatal(err)
	}
	if !unified() {
		for _, controller := range []string{"memory", "cpu", "cpuacct", "pids"} {
			if err := os.Remove(filepath.Join(mountpoint, controller, group)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
	if err := End(t.Context(), group); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(mountpoint, "*", group)); err != nil || len(left) > 0 {
		t.Errorf("of the group the folders %v are left, %v", left, err)
	}
}

// start runs a process in a group until the test ends.
func start(t *testing.T, group string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := Add(group, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestEndOfWhatAKillHasLeft: version 1 has a folder in each of many trees; who is killed
// while he removes them leaves some.
func TestEndOfWhatAKillHasLeft(t *testing.T) {
	if unified() {
		return // there is one tree
	}
	all, err := subsystems1()
	if err != nil {
		t.Fatal(err)
	}
	var folders []string
	group := Path(fmt.Sprintf("/ambipod-left-%d", os.Getpid()), "vm")
	for _, s := range all {
		if tree, ok := s.(interface{ Path(string) string }); ok && !slices.Contains(folders, tree.Path(group)) {
			folders = append(folders, tree.Path(group))
		}
	}
	t.Cleanup(func() {
		if err := Delete(path.Dir(group)); err != nil {
			t.Error(err)
		}
	})
	for _, left := range folders {
		if err := Create(group, Limits{}); err != nil {
			t.Fatal(err)
		}
		for _, folder := range folders {
			if folder != left {
				_ = os.Remove(folder) // some trees have two names
			}
		}
		if err := End(t.Context(), group); err != nil {
			t.Errorf("with %s left: %v", left, err)
		}
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", left, err)
		}
	}
}
