package defaultcgroup

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The hierarchies are ordinary folders here: what is asked of them is the same.
func TestOnlyNewAndEmptyCgroupsGo(t *testing.T) {
	root := t.TempDir()
	folder := func(elem ...string) string {
		t.Helper()
		dir := filepath.Join(append([]string{root}, elem...)...)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	theirs := folder("cpu", "k8s.io")
	s, err := take(root)
	if err != nil {
		t.Fatal(err)
	}
	gone := []string{folder("memory", "k8s.io"), folder("k8s.io")}
	stay := []string{theirs, folder("pids", "k8s.io", "container"), folder("pids", "other")}
	for range 2 {
		if err := s.RemoveNew(); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range gone {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", dir, err)
		}
	}
	for _, dir := range stay {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}
