//go:build integration

package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"testing"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLifeOfAGroup runs against the kernel's own hierarchy.
func TestLifeOfAGroup(t *testing.T) {
	parent := fmt.Sprintf("/ambipod-test-%d", os.Getpid())
	group := Path(parent, "vm")
	if err := Create(parent, Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Delete(parent); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // may be repeated
		if err := Create(group, Limits{Shares: 256, Quota: 50000, Period: 100000}); err != nil {
			t.Fatal(err)
		}
	}

	sleeper := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}
	defer stop()
	if err := Add(group, sleeper.Process.Pid); err != nil {
		t.Fatal(err)
	}
	stats, err := Read(group)
	if err != nil {
		t.Fatal(err)
	}
	if stats.OOMKills != 0 || stats.Processes != 1 || stats.Threads != 1 {
		t.Errorf("%d OOM kills of %d processes with %d threads, want none of one with one", stats.OOMKills, stats.Processes, stats.Threads)
	}
	if use, err := ReadUse(group); err != nil || use.MemoryLimit != stats.MemoryLimit || use.CPU < stats.CPU {
		t.Errorf("use of a group with a process is %+v, %v, before it was %+v", use, err, stats)
	}
	if above, err := Read(parent); err != nil || above.Processes != 1 || above.MemoryLimit != 0 {
		t.Errorf("the parent has %d processes and the memory limit %d (%v), want one and none", above.Processes, above.MemoryLimit, err)
	}
	if err := Delete(group); err == nil {
		t.Error("a group with a process in it was deleted")
	}

	raiseMemory(t, group)

	stop()
	for range 2 {
		if err := Delete(group); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(group); !errdefs.IsNotFound(err) {
		t.Errorf("Read of a deleted group: %v", err)
	}
	if _, err := ReadUse(group); !errdefs.IsNotFound(err) {
		t.Errorf("ReadUse of a deleted group: %v", err)
	}
	if err := Add(group, os.Getpid()); !errdefs.IsNotFound(err) {
		t.Errorf("Add to a deleted group: %v", err)
	}
}

// TestAddOnHybridMachine: a process leaves the group that it has in version 2's tree,
// so that whoever made that group can remove it.
func TestAddOnHybridMachine(t *testing.T) {
	if cgroups.Mode() != cgroups.Hybrid {
		return // there is no second tree
	}
	former := fmt.Sprintf("%s/ambipod-former-%d", hybridMount, os.Getpid())
	if err := os.Mkdir(former, 0o755); err != nil {
		t.Fatal(err)
	}
	group := Path(fmt.Sprintf("/ambipod-hybrid-%d", os.Getpid()), "vm")
	if err := Create(group, Limits{}); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
		for _, g := range []string{group, path.Dir(group)} {
			if err := Delete(g); err != nil {
				t.Error(err)
			}
		}
	})
	if err := os.WriteFile(former+"/cgroup.procs", fmt.Append(nil, sleeper.Process.Pid), 0); err != nil {
		t.Fatal(err)
	}
	if err := Add(group, sleeper.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(former); err != nil {
		t.Errorf("the process keeps its former group: %v", err)
	}
}

func raiseMemory(t *testing.T, group string) {
	t.Helper()
	const low, high = 64 << 20, 128 << 20
	if raised, err := RaiseMemory(group, low); err != nil || raised {
		t.Errorf("RaiseMemory of a parent without limit: %v, %v", raised, err)
	}
	limit := int64(low)
	if err := update(path.Dir(group), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if raised, err := RaiseMemory(group, high); err != nil || !raised {
		t.Fatalf("RaiseMemory from %d to %d: %v, %v", low, high, raised, err)
	}
	if limit, err := memoryLimit(path.Dir(group)); err != nil || limit != high {
		t.Errorf("limit after RaiseMemory is %d (%v), want %d", limit, err, high)
	}
	if stats, err := Read(group); err != nil || stats.MemoryLimit != high {
		t.Errorf("the group's memory limit is %d (%v), want its parent's, %d", stats.MemoryLimit, err, high)
	}
	if raised, err := RaiseMemory(group, low); err != nil || raised {
		t.Errorf("RaiseMemory to less than there is: %v, %v", raised, err)
	}
}
