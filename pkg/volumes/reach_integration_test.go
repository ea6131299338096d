//go:build integration

package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestCheckReach asks for a user that owns nothing.
func TestCheckReach(t *testing.T) {
	const nobody = 65534
	top, err := os.MkdirTemp("/var/tmp", "ambipod-reach") //nolint:usetesting // others must reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	folder := filepath.Join(top, "kubelet", "data")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what          string
		top, folder   os.FileMode
		reads, writes bool
	}{
		{what: "a folder of everybody's", top: 0o755, folder: 0o777, reads: true, writes: true},
		{what: "a folder of root's", top: 0o755, folder: 0o755, reads: true},
		{what: "a folder to pass alone", top: 0o755, folder: 0o711},
		{what: "a folder in a closed one", top: 0o750, folder: 0o777},
	} {
		for path, mode := range map[string]os.FileMode{top: step.top, folder: step.folder} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		for readOnly, want := range map[bool]bool{true: step.reads, false: step.writes} {
			err := CheckReach(t.Context(), folder, nobody, nobody, readOnly)
			if want && err != nil || !want && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), folder)) {
				t.Errorf("%s, read-only %t: %v", step.what, readOnly, err)
			}
		}
	}
}
