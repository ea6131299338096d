package cloudinit

import (
	"encoding/base64"
	"io"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/kdomanski/iso9660"
)

func decodeBase64(t *testing.T, text string) []byte {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readISO returns the label and all files of an image.
func readISO(t *testing.T, name string) (string, Files) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image, err := iso9660.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	label, err := image.Label()
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	files := Files{}
	readFolder(t, root, "", files)
	return label, files
}

func readFolder(t *testing.T, folder *iso9660.File, prefix string, files Files) {
	t.Helper()
	children, err := folder.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range children {
		name := path.Join(prefix, child.Name())
		if child.IsDir() {
			readFolder(t, child, name, files)
			continue
		}
		if files[name], err = io.ReadAll(child.Reader()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteISO(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	name := filepath.Join(dir, "config.iso")
	want := Files{
		"meta-data": []byte("{}"), "user-data": make([]byte, 70000), "network-config": []byte("version: 2\n"), "vendor-data": {},
		"openstack/latest/meta_data.json": []byte("{}"), "openstack/latest/user_data": []byte("x"), "openstack/content/0000": []byte("y"),
	}
	for _, round := range []string{"first", "second"} { // the second replaces the first
		want["meta-data"] = []byte(round)
		if err := WriteISO(name, LabelNoCloud, want); err != nil {
			t.Fatal(err)
		}
		label, got := readISO(t, name)
		if label != "cidata" {
			t.Errorf("label is %q, want cidata", label)
		}
		if diff := cmp.Diff(texts(want), texts(got)); diff != "" {
			t.Errorf("%s image: %s", round, diff)
		}
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode is %v, want -rw-------", info.Mode())
	}
	assertEntries(t, dir, 1)
	assertEntries(t, os.TempDir(), 0)
}

func assertEntries(t *testing.T, dir string, want int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != want {
		t.Errorf("%s holds %v, want %d entries", dir, entries, want)
	}
}

func TestWriteISORefusals(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir := t.TempDir()
	for _, test := range []struct {
		label, file string
	}{
		{"", "user-data"},
		{"abcdefghijklmnopqrstuvwxyzabcdefg", "user-data"},
		{"cidata", "User-Data"},
		{"cidata", "../user-data"},
		{"cidata", "/user-data"},
		{"cidata", "a.b.c"},
		{"cidata", ""},
	} {
		err := WriteISO(filepath.Join(dir, "config.iso"), test.label, Files{test.file: nil})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("label %q, file %q: got error %v, want an invalid argument", test.label, test.file, err)
		}
	}
	if err := WriteISO(filepath.Join(dir, "absent", "config.iso"), "cidata", Files{"user-data": nil}); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("got error %v, want that the folder is missing", err)
	}
	assertEntries(t, dir, 0)
	assertEntries(t, os.TempDir(), 0)
}

func unwrapAll(err error) error {
	for {
		inner, ok := err.(interface{ Unwrap() error })
		if !ok || inner.Unwrap() == nil {
			return err
		}
		err = inner.Unwrap()
	}
}
