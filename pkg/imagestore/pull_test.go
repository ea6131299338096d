package imagestore

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func TestPullStoresImageByContent(t *testing.T) {
	disk := imagetest.QCOW2("a")
	srv := serve(t, map[string][]byte{"/tiny.qcow2": disk})
	s := openStore(t)

	name := srv.name("/tiny.qcow2")
	image := pull(t, s, name)

	id := sum(disk)
	want := Image{
		ID: id, Names: []string{name + ":latest"}, Digests: []string{name + "@sha256:" + id},
		Size: int64(len(disk)), VirtualSize: imagetest.QCOW2Size, Format: FormatQCOW2,
		Path: s.paths.data(id), PulledAt: image.PulledAt,
	}
	if diff := cmp.Diff(want, image); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	stored, err := os.ReadFile(image.Path)
	if err != nil || sum(stored) != id {
		t.Errorf("stored file: digest %s, err %v; want %s", sum(stored), err, id)
	}
	for _, ref := range []string{name, name + ":latest", name + "@sha256:" + id, id, "sha256:" + id} {
		got, err := s.Resolve(ref)
		if err != nil || got.ID != id {
			t.Errorf("Resolve(%q) = %v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{name + ":v2", name + "@sha256:" + sum(nil), sum(nil), "busybox", ""} {
		if _, err := s.Resolve(ref); !errdefs.IsNotFound(err) {
			t.Errorf("Resolve(%q) = %v; want not found", ref, err)
		}
	}
}

func TestImageFileIsReadableByQEMUAndWritableByNobody(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	info, err := os.Stat(image.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fileModeImage {
		t.Errorf("mode of the image is %v, want %v", info.Mode(), os.FileMode(fileModeImage))
	}
	owner, isStat := info.Sys().(*syscall.Stat_t)
	if os.Getuid() == 0 && (!isStat || owner.Uid != 0 || owner.Gid != nobody) {
		t.Errorf("owner of the image is %d:%d, want 0:%d", owner.Uid, owner.Gid, nobody)
	}
	for dir, want := range map[string]os.FileMode{
		s.opts.Dir: dirModePassable, s.paths.dataDir(): dirModePassable,
		s.paths.describeDir(): dirModePrivate, s.paths.partialDir(): dirModePrivate,
	} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode of %s is %v (%v), want %v", dir, info.Mode(), err, want)
		}
	}
}

func TestSameContentUnderSeveralNamesIsStoredOnce(t *testing.T) {
	disk := imagetest.Raw("same", 4096)
	srv := serve(t, map[string][]byte{"/a": disk, "/b": disk})
	s := openStore(t)
	pull(t, s, srv.name("/a"))
	pull(t, s, srv.name("/b:v1"))
	alias := strings.Replace(srv.name("/a"), Prefix, LegacyPrefix, 1)
	got := pull(t, s, alias)

	want := []string{alias + ":latest", srv.name("/a:latest"), srv.name("/b:v1")}
	if diff := cmp.Diff(want, got.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if images, _ := s.List(); len(images) != 1 || got.Format != FormatRaw || got.VirtualSize != 4096 {
		t.Errorf("List() = %v", images)
	}
	if requests, sent := srv.asked(); requests != 3 || sent != 2*int64(len(disk)) {
		t.Errorf("%d requests, %d bytes; want the alias to cost a question only", requests, sent)
	}
}

func TestUnchangedImageIsNotFetchedAgain(t *testing.T) {
	disk := imagetest.QCOW2("a")
	srv := serve(t, map[string][]byte{"/d": disk})
	s := openStore(t)
	first := pull(t, s, srv.name("/d"))
	again := pull(t, s, srv.name("/d"))
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("second pull (-first +second):\n%s", diff)
	}
	if _, sent := srv.asked(); sent != int64(len(disk)) {
		t.Errorf("%d bytes were sent for a file of %d", sent, len(disk))
	}
}

func TestChangedImageTakesTheName(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("old")})
	s := openStore(t)
	old := pull(t, s, srv.name("/d"))
	srv.put("/d", imagetest.QCOW2("new"))
	now := pull(t, s, srv.name("/d"))
	if now.ID == old.ID {
		t.Fatal("the image did not change")
	}
	got, err := s.Resolve(srv.name("/d"))
	if err != nil || got.ID != now.ID {
		t.Errorf("Resolve by name = %s, %v; want %s", got.ID, err, now.ID)
	}
	got, err = s.Resolve(old.Digests[0])
	if err != nil || got.ID != old.ID || len(got.Names) != 0 {
		t.Errorf("Resolve by old digest = %+v, %v; want the old image without a name", got, err)
	}
	// What is on the disk must agree with what is in memory.
	before, _ := s.List()
	reopened := reopen(t, s)
	after, _ := reopened.List()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
}

// TestCompressedClusters pulls images as distributions publish them.
func TestCompressedClusters(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "raw")
	disk := noisy(imagetest.Raw("compressed", 1<<20))
	copy(disk[1<<19:], make([]byte, 1<<18))
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s (is the package qemu-utils installed?)", args, err, out)
		}
	}
	for _, options := range []string{"compat=0.10", "compat=1.1", "compression_type=zstd"} {
		packed := filepath.Join(t.TempDir(), "packed")
		run("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, packed)
		content, err := os.ReadFile(packed)
		if err != nil {
			t.Fatal(err)
		}
		srv := serve(t, map[string][]byte{"/d": content})
		image := pull(t, openStore(t), srv.name("/d"))
		if image.ID != sum(content) || image.Format != FormatQCOW2 || image.VirtualSize != int64(len(disk)) {
			t.Errorf("%s: %+v", options, image)
		}
		run("compare", "-f", "raw", "-F", string(image.Format), raw, image.Path)
	}
}

// TestEndlessValidatorsAreNotKept has a server say more about a file than anybody needs.
func TestEndlessValidatorsAreNotKept(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	srv.etags["/d"] = `"` + strings.Repeat("x", 100<<10) + `"`
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	if info, err := os.Stat(s.paths.describe(image.ID)); err != nil || info.Size() > 4<<10 {
		t.Errorf("description: %v bytes, %v", info.Size(), err)
	}
	if again := pull(t, s, srv.name("/d")); again.ID != image.ID {
		t.Errorf("pulled again: %s", again.ID)
	}
}

// reopen opens a second store on the folder of the first, which it closes.
func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	if err := s.index.close(); err != nil {
		t.Fatal(err)
	}
	return openStore(t, inDir(s.opts.Dir))
}

func TestPullByDigest(t *testing.T) {
	disk := imagetest.Raw("big", 32<<20) // more than a connection buffers
	srv := serve(t, map[string][]byte{"/d": disk, "/copy": disk})
	s := openStore(t)
	digest := "@sha256:" + sum(disk)

	image := pull(t, s, srv.name("/d:ignored")+digest)
	if len(image.Names) != 0 || !cmp.Equal(image.Digests, []string{srv.name("/d") + digest}) {
		t.Errorf("names %q, digests %q", image.Names, image.Digests)
	}
	// From another server the same bytes need not travel, but it must let us in.
	pull(t, s, srv.name("/copy")+digest)
	if _, sent := srv.asked(); sent > int64(len(disk))*3/2 {
		t.Errorf("%d bytes were sent for a file of %d that was known", sent, len(disk))
	}
	if _, err := s.Pull(t.Context(), srv.name("/none")+digest, Credentials{}); !errdefs.IsNotFound(err) {
		t.Errorf("pull of known content from a server that has it not: %v", err)
	}
	// The digest says nothing about what the name means now.
	srv.put("/copy", imagetest.QCOW2("b"))
	if got := pull(t, s, srv.name("/copy")); got.ID == image.ID {
		t.Error("pull by name after pull by digest returned old content")
	}
}

func TestWrongDigestLeavesNothing(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	_, err := s.Pull(t.Context(), srv.name("/d")+"@sha256:"+sum(nil), Credentials{})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), sum(imagetest.QCOW2("a"))) {
		t.Errorf("err = %v; want data loss that names the digest", err)
	}
	wantEmpty(t, s)
}

func TestManyPullsShareOneDownload(t *testing.T) {
	disk := imagetest.Raw("disk", 1<<20)
	release := make(chan struct{})
	srv := serve(t, map[string][]byte{"/d": disk})
	gate := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		gate.ServeHTTP(w, r)
	})
	s := openStore(t)
	const pulls = 50
	var done sync.WaitGroup
	for i := range pulls {
		done.Go(func() {
			name := srv.name("/d")
			if i%2 == 1 {
				name = strings.Replace(name, Prefix, LegacyPrefix, 1)
			}
			image, err := s.Pull(t.Context(), name, Credentials{})
			if err != nil || image.ID != sum(disk) {
				t.Errorf("pull %d: %v, %v", i, image.ID, err)
			}
		})
	}
	where, _ := s.locate(mustParse(t, srv.name("/d")))
	eventually(t, "all pulls wait", func() bool { return s.flights.waiting(where.key()) == pulls })
	close(release)
	done.Wait()
	if requests, sent := srv.asked(); requests != 1 || sent != int64(len(disk)) {
		t.Errorf("%d requests, %d bytes; want one download of %d", requests, sent, len(disk))
	}
	image, err := s.Resolve(sum(disk))
	if err != nil || len(image.Names) != 2 {
		t.Errorf("image %+v, err %v; want both names", image, err)
	}
}

// waiting is the number of callers of a flight.
func (f *flights) waiting(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active[key] == nil {
		return 0
	}
	return f.active[key].waiters
}

func mustParse(t testing.TB, name string) Reference {
	t.Helper()
	ref, err := ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestCancelledCallerDoesNotStopOthers(t *testing.T) {
	disk := imagetest.QCOW2("a")
	release := make(chan struct{})
	srv := serve(t, map[string][]byte{"/d": disk})
	gate := srv.Config.Handler
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		gate.ServeHTTP(w, r)
	})
	s := openStore(t)
	where, _ := s.locate(mustParse(t, srv.name("/d")))

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, srv.name("/d"), Credentials{})
		first <- err
	}()
	eventually(t, "the first pull runs", func() bool { return s.flights.waiting(where.key()) == 1 })
	second := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
		second <- err
	}()
	eventually(t, "both pulls wait", func() bool { return s.flights.waiting(where.key()) == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the other pull: %v", err)
	}
	if requests, _ := srv.asked(); requests != 1 {
		t.Errorf("%d requests, want 1", requests)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	entered := make(chan struct{})
	srv := serve(t, nil)
	srv.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	s, err := Open(t.Context(), testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
		done <- err
	}()
	<-entered
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Errorf("pull during Close: %v; want unavailable", err)
	}
	if _, err := s.Pull(t.Context(), srv.name("/d"), Credentials{}); !errdefs.IsUnavailable(err) {
		t.Errorf("pull after Close: %v; want unavailable", err)
	}
}
