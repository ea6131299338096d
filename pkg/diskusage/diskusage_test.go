package diskusage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	before, err := Measure(dir)
	if err != nil {
		t.Fatal(err)
	}
	sparse := filepath.Join(dir, "sparse")
	if err := os.WriteFile(sparse, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	after, err := Measure(dir)
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.Bytes - before.Bytes; grown < 100_000 || grown > 1<<20 {
		t.Errorf("100000 bytes take %d", grown)
	}
	if grown := after.Inodes - before.Inodes; grown != 3 {
		t.Errorf("a file and two folders take %d inodes", grown)
	}
	if _, err := Measure(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want that it is missing", err)
	}
}

func TestMountpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	mounted := mounts(t)
	for _, path := range []string{dir, link, "/proc/self"} {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Mountpoint(path)
		if err != nil || !mounted[got] || !within(real, got) {
			t.Errorf("%s lies on %q, %v; want a mount point above it", path, got, err)
		}
		for other := range mounted {
			if within(real, other) && len(other) > len(got) {
				t.Errorf("%s lies on %q, want %q, which is nearer", path, got, other)
			}
		}
	}
	if got, err := Mountpoint("/proc/self"); err != nil || got != "/proc" {
		t.Errorf("/proc/self lies on %q, %v", got, err)
	}
	if _, err := Mountpoint(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want that it is missing", err)
	}
}

func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

func mounts(t *testing.T) map[string]bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	mounted := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			mounted[fields[1]] = true
		}
	}
	return mounted
}
