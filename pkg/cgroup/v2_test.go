package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// unifiedTree lays a hierarchy out as the kernel's cgroup v2 shows it (Documentation/
// admin-guide/cgroup-v2.rst): a pod limited to 256 MiB, and its VM.
func unifiedTree(t *testing.T) hierarchy {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"pod/cgroup.controllers":    "cpuset cpu io memory pids\n",
		"pod/memory.max":            "268435456\n",
		"pod/memory.current":        "209715200\n",
		"pod/memory.stat":           "anon 0\n",
		"pod/memory.events":         "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
		"pod/cpu.stat":              "usage_usec 0\n",
		"pod/vm/cgroup.controllers": "cpuset cpu io memory pids\n",
		"pod/vm/cgroup.procs":       "",
		"pod/vm/memory.max":         "max\n",
		"pod/vm/memory.current":     "104857600\n",
		"pod/vm/memory.stat":        "anon 73400320\nfile 31457280\ninactive_file 10485760\npgfault 700\npgmajfault 7\n",
		"pod/vm/memory.events":      "low 0\nhigh 0\nmax 2\noom 0\noom_kill 1\n",
		"pod/vm/cpu.stat":           "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 250000\n",
		"pod/vm/cpu.weight":         "7\n",
		"pod/vm/cpu.max":            "max 100000\n",
		"pod/vm/cpuset.cpus":        "\n",
		"pod/vm/cpuset.mems":        "\n",
		"pod/vm/pids.current":       "12\n",
		"pod/vm/pids.max":           "max\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hierarchy(root)
}

// TestReadUnified: a VM that was killed because its pod ran out of memory is seen in
// the VM's own group.
func TestReadUnified(t *testing.T) {
	stats, err := unifiedTree(t).read("/pod/vm")
	if err != nil {
		t.Fatal(err)
	}
	if stats.OOMKills != 1 || stats.CPU != 1500*time.Millisecond || stats.Memory != 100<<20 || stats.WorkingSet != 90<<20 || stats.RSS != 70<<20 ||
		stats.PageFaults != 700 || stats.MajorPageFaults != 7 || stats.ThrottledPeriods != 4 || stats.Throttled != 250*time.Millisecond {
		t.Errorf("got %+v", stats)
	}
	if stats.MemoryLimit != 256<<20 {
		t.Errorf("the limit is %d, want the pod's 256 MiB", stats.MemoryLimit)
	}
	if _, err := unifiedTree(t).read("/pod/none"); !errdefs.IsNotFound(err) {
		t.Errorf("a group that is not there: %v", err)
	}
}

func TestMemoryLimitUnified(t *testing.T) {
	tree := unifiedTree(t)
	for group, want := range map[string]uint64{"/": math.MaxUint64, "/pod": 256 << 20, "/pod/vm": math.MaxUint64} {
		if got, err := tree.memoryLimit(group); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", group, got, err, want)
		}
	}
	if _, err := tree.memoryLimit("/none"); !errdefs.IsNotFound(err) {
		t.Errorf("a group that is not there: %v", err)
	}
}

func TestUpdateUnified(t *testing.T) {
	tree := unifiedTree(t)
	if err := tree.update("/pod/vm", Limits{Shares: 1024, Quota: 150000, Period: 100000, CPUSet: "0-1", MemSet: "0"}.spec()); err != nil {
		t.Fatal(err)
	}
	raised := int64(384 << 20)
	if err := tree.update("/pod", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &raised}}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"pod/vm/cpu.weight": "100", // what 1024 shares, a whole CPU, come to
		"pod/vm/cpu.max":    "150000 100000", "pod/vm/cpuset.cpus": "0-1", "pod/vm/cpuset.mems": "0", "pod/memory.max": "402653184",
	} {
		text, err := os.ReadFile(filepath.Join(string(tree), name))
		if err != nil || strings.TrimSpace(string(text)) != want {
			t.Errorf("%s is %q, %v, want %q", name, text, err, want)
		}
	}
	for _, limits := range []Limits{{}, {Period: 50000}, {Quota: -1}} {
		if err := tree.update("/pod/vm", limits.spec()); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(string(tree), "pod/vm/cpu.max"))
		if fields := strings.Fields(string(text)); err != nil || len(fields) != 2 || fields[0] != "max" || limits.Period > 0 && fields[1] != "50000" {
			t.Errorf("with %+v cpu.max is %q, %v", limits, text, err)
		}
	}
	if err := tree.update("/none", Limits{}.spec()); !errdefs.IsNotFound(err) {
		t.Errorf("a group that is not there: %v", err)
	}
}
