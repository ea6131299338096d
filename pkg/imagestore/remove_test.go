package imagestore

import (
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func TestRemoveByAnyName(t *testing.T) {
	disk := imagetest.QCOW2("a")
	srv := serve(t, map[string][]byte{"/a": disk, "/b": disk})
	s := openStore(t)
	for _, by := range []string{srv.name("/a"), srv.name("/b:latest"), srv.name("/a") + "@sha256:" + sum(disk), sum(disk), "sha256:" + sum(disk)} {
		pull(t, s, srv.name("/a"))
		pull(t, s, srv.name("/b"))
		for range 2 { // the second time it is gone already
			if err := s.Remove(t.Context(), by); err != nil {
				t.Errorf("Remove(%q): %v", by, err)
			}
		}
		wantEmpty(t, s)
	}
	if err := s.Remove(t.Context(), "no such image"); err != nil {
		t.Errorf("Remove of an unknown image: %v", err)
	}
}

func TestRemovedImageStaysForItsHolders(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	for _, holder := range []string{"vm1", "vm2", "vm2"} {
		if err := s.Hold(image.ID, holder); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), image.ID); err != nil {
		t.Fatal(err)
	}
	if images, _ := s.List(); len(images) != 0 {
		t.Errorf("a removed image is listed: %v", images)
	}
	for _, ref := range []string{image.ID, srv.name("/d"), image.Digests[0]} {
		if _, err := s.Resolve(ref); !errdefs.IsNotFound(err) {
			t.Errorf("Resolve(%q) of a removed image: %v", ref, err)
		}
	}
	if err := s.Hold(image.ID, "vm3"); !errdefs.IsNotFound(err) {
		t.Errorf("Hold of a removed image: %v", err)
	}

	s = reopen(t, s)
	if err := s.Release("vm1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image.Path); err != nil {
		t.Errorf("image is gone while vm2 holds it: %v", err)
	}
	for range 2 {
		if err := s.Release("vm2"); err != nil {
			t.Fatal(err)
		}
	}
	wantEmpty(t, s)
}

func TestPullBringsBackRemovedImage(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	if err := s.Hold(image.ID, "vm1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), image.ID); err != nil {
		t.Fatal(err)
	}
	if again := pull(t, s, srv.name("/d")); !cmp.Equal(image, again) {
		t.Errorf("image after removal and pull:\n%s", cmp.Diff(image, again))
	}
	if err := s.Release("vm1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(image.Path); err != nil {
		t.Errorf("image that was pulled again is gone: %v", err)
	}
}

func TestSetHoldersForgetsOthers(t *testing.T) {
	srv := serve(t, map[string][]byte{"/a": imagetest.QCOW2("a"), "/b": imagetest.QCOW2("b")})
	s := openStore(t)
	a, b := pull(t, s, srv.name("/a")), pull(t, s, srv.name("/b"))
	for _, image := range []Image{a, b} {
		if err := s.Hold(image.ID, "gone-"+image.ID[:4]); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), image.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetHolders(map[string][]string{"vm1": {a.ID, sum(nil)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a.Path); err != nil {
		t.Errorf("image of vm1: %v", err)
	}
	if _, err := os.Stat(b.Path); !os.IsNotExist(err) {
		t.Errorf("image that nobody holds: %v; want it gone", err)
	}
	if err := s.Release("vm1"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

func TestHoldRefusesUnknownImages(t *testing.T) {
	s := openStore(t)
	for _, id := range []string{"", "x", sum(nil), "../../etc/passwd"} {
		if err := s.Hold(id, "vm1"); !errdefs.IsNotFound(err) {
			t.Errorf("Hold(%q) = %v; want not found", id, err)
		}
	}
}

func TestUsageCountsTheStoreOnly(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.Raw("disk", 3<<20)})
	s := openStore(t)
	before, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	pull(t, s, srv.name("/d"))
	after, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.Bytes - before.Bytes; grown < 3<<20 || grown > 4<<20 {
		t.Errorf("an image of 3 MiB made the store grow by %d bytes", grown)
	}
	if grown := after.Inodes - before.Inodes; grown != 2 {
		t.Errorf("an image made the store grow by %d inodes, want 2: file and description", grown)
	}
}
