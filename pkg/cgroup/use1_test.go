package cgroup

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestUseOfAGroupOfVersion1(t *testing.T) {
	files := map[string]string{
		"cpu/vm/cpuacct.usage":                      "1234567890\n",
		"memory/vm/memory.usage_in_bytes":           "1000000\n",
		"memory/vm/memory.memsw.usage_in_bytes":     "1300000\n",
		"memory/vm/memory.stat":                     "cache 1\nrss 2\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 300000\ntotal_rss 600000\ntotal_mapped_file 5\ntotal_active_file 6\ntotal_inactive_file 250000\ntotal_pgfault 7\ntotal_pgmajfault 8\n",
		"memory/limited/memory.usage_in_bytes":      "1\n",
		"memory/limited/memory.stat":                "hierarchical_memory_limit 4096\ntotal_inactive_file 2\n",
		"memory/damaged/memory.usage_in_bytes":      "1\n",
		"memory/damaged/memory.stat":                "total_rss many\n",
		"memory/not-a-number/memory.usage_in_bytes": "\n",
	}
	root := t.TempDir()
	for name := range maps.Keys(files) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := folders1{cpu: filepath.Join(root, "cpu"), memory: filepath.Join(root, "memory")}
	memory := folders1{memory: all.memory}

	want := Stats{
		CPU: 1234567890 * time.Nanosecond, Memory: 1_000_000, WorkingSet: 750_000, RSS: 600_000, Swap: 300_000,
		Cache: 300_000, MappedFile: 5, ActiveFile: 6, InactiveFile: 250_000, PageFaults: 7, MajorPageFaults: 8,
	}
	if got, err := all.read("/vm"); err != nil || got != want {
		t.Errorf("use is %+v, %v\nwant   %+v", got, err, want)
	}
	// Neither swap nor CPU time counted, a limit, and more to drop than there is.
	want = Stats{Memory: 1, InactiveFile: 2, MemoryLimit: 4096}
	if got, err := memory.read("/limited"); err != nil || got != want {
		t.Errorf("use is %+v, %v\nwant   %+v", got, err, want)
	}
	if got, err := (folders1{}).read("/vm"); err != nil || got != (Stats{}) {
		t.Errorf("use on a machine without controllers is %+v, %v", got, err)
	}
	for group, is := range map[string]func(error) bool{"/damaged": errdefs.IsDataLoss, "/not-a-number": errdefs.IsDataLoss, "/none": errdefs.IsNotFound} {
		if got, err := memory.read(group); !is(err) || got != (Stats{}) {
			t.Errorf("use of %s is %+v, %v", group, got, err)
		}
	}
	if _, err := all.read("/none"); !errdefs.IsNotFound(err) {
		t.Errorf("use of no group: %v", err)
	}
}
