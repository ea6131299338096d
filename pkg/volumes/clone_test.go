package volumes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestCloneRootWithoutReflinks leaves the disk to CreateRoot, and nothing behind.
func TestCloneRootWithoutReflinks(t *testing.T) {
	for _, format := range baseFormats {
		r := newBase(t, format)
		// No file system shares blocks with what is no regular file.
		if format == "raw" {
			r.Base = "/dev/null"
		}
		if cloned, err := CloneRoot(r); cloned || err != nil {
			t.Errorf("%s: %v, %v", format, cloned, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(r.Path)); err != nil || len(entries) != 2 {
			t.Errorf("%s: left behind: %v (%v)", format, entries, err)
		}
	}
}

func TestCloneRootRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Root)
		is     func(error) bool
	}{
		"smaller than the image": {func(r *Root) { r.Size = r.VirtualSize - 1 }, errdefs.IsInvalidArgument},
		"base is missing":        {func(r *Root) { r.Base += ".absent" }, errdefs.IsNotFound},
		"another size is there":  {func(r *Root) { r.Path = r.Base; r.Size = 1 << 30 }, errdefs.IsAlreadyExists},
		"a folder is there":      {func(r *Root) { r.Path = filepath.Dir(r.Base) }, errdefs.IsAlreadyExists},
	} {
		r := newBase(t, "raw")
		test.change(&r)
		if cloned, err := CloneRoot(r); cloned || !test.is(err) {
			t.Errorf("%s: %v, %v", name, cloned, err)
		}
	}
}
