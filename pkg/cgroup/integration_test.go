//go:build integration

package cgroup

import (
	"errors"
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

// TestUseIsWhatTheLibraryReads compares both ways to read a group, of a process that has
// taken memory in it and waits.
func TestUseIsWhatTheLibraryReads(t *testing.T) {
	group := Path(fmt.Sprintf("/ambipod-use-%d", os.Getpid()), "vm")
	if err := Create(group, Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range []string{group, path.Dir(group)} {
			if err := Delete(g); err != nil {
				t.Error(err)
			}
		}
	})
	shell := exec.CommandContext(t.Context(), "sh", "-c", `read begin; much=$(head -c 4000000 /dev/zero | tr '\0' x); echo; read end`)
	in, inErr := shell.StdinPipe()
	out, outErr := shell.StdoutPipe()
	if err := errors.Join(inErr, outErr, shell.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), shell.Wait()); err == nil {
			t.Error("the shell has read more than was written")
		}
	}()
	if err := Add(group, shell.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	use, useErr := ReadUse(group)
	all, allErr := Read(group)
	if err := errors.Join(useErr, allErr); err != nil {
		t.Fatal(err)
	}
	// The kernel counts pages in batches for each processor, and adds them up now and then.
	const batches = 1 << 20
	if use.RSS < 4_000_000-batches || use.CPU == 0 || use.PageFaults == 0 {
		t.Errorf("a process that took 4 MB has used %+v", use)
	}
	if use.CPU > all.CPU || use.RSS > all.RSS+batches || all.RSS > use.RSS+batches || use.Swap != all.Swap ||
		use.MemoryLimit != all.MemoryLimit || use.PageFaults > all.PageFaults {
		t.Errorf("use is %+v, and a moment later all is %+v", use, all)
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
