package imagestore

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func writeTranslation(t testing.TB, dir, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "images.yaml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	writeTranslation(t, dir, `
translations:
- {name: short, url: 'https://user:pw@example.org/Disk.qcow2?a=b'}
- {name: schemeless, url: 'example.org/x'}
- {name: http/example.org/mapped, url: 'https://elsewhere/x'}
- {name: registry, url: 'oci://registry.example/r:v1'}
`)
	s := openStore(t, func(o *Options) { o.DefaultProtocol, o.TranslationDirs = "https", []string{dir} })
	digest := "@sha256:" + sum(nil)
	for name, want := range map[string]string{
		"example.org/a/b.qcow2:latest":    "https://example.org/a/b.qcow2",
		"http/127.0.0.1/tiny.qcow2":       "http://127.0.0.1/tiny.qcow2",
		"http/127.0.0.1:8080/tiny.qcow2":  "http://127.0.0.1:8080/tiny.qcow2",
		"http/127.0.0.1__8080/tiny.qcow2": "http://127.0.0.1:8080/tiny.qcow2",
		"https/example.org/x" + digest:    "https://example.org/x",
		"short":                           "https://example.org/Disk.qcow2?…",
		"schemeless:v1":                   "https://example.org/x",
		"http/example.org/mapped":         "https://elsewhere/x",
		"oci/registry.example/a/b":        "oci://registry.example/a/b:latest",
		"oci/registry.example__5000/a:v1": "oci://registry.example:5000/a:v1",
		"oci/registry.example/a" + digest: "oci://registry.example/a" + digest,
		"registry":                        "oci://registry.example/r:v1",
	} {
		got, err := s.locate(mustParse(t, Prefix+name))
		if err != nil || got.String() != want {
			t.Errorf("locate(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"nopath", "http/nopath", "http", "oci"} {
		if got, err := s.locate(mustParse(t, Prefix+name)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("locate(%q) = %v, %v; want an invalid argument", name, got, err)
		}
	}
}

func TestTransportProfiles(t *testing.T) {
	plain := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	secure := httptest.NewTLSServer(plain.Config.Handler)
	t.Cleanup(secure.Close)
	hops := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/2" {
			http.Redirect(w, r, "/1", http.StatusFound)
		} else {
			http.Redirect(w, r, plain.URL+"/d", http.StatusFound)
		}
	}))
	t.Cleanup(hops.Close)
	down := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/d", http.StatusFound))
	t.Cleanup(down.Close)
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(stuck.Close)
	var proxied int
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxied++
		r.URL.Path = "/d"
		plain.Config.Handler.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)

	dir := t.TempDir()
	writeTranslation(t, dir, fmt.Sprintf(`
translations:
- {name: insecure, url: '%[1]s/d', transport: insecure}
- {name: one, url: '%[2]s/1', transport: one}
- {name: two, url: '%[2]s/2', transport: one}
- {name: down, url: '%[3]s/d', transport: insecure}
- {name: slow, url: '%[4]s/d', transport: brief}
- {name: proxied, url: 'http://unreachable.invalid/d', transport: proxy}
transports:
  insecure: {tls: {insecure: true}}
  one: {maxRedirects: 1}
  brief: {timeout: 100}
  proxy: {proxy: '%[5]s'}
`, secure.URL, hops.URL, down.URL, stuck.URL, proxy.URL))
	s := openStore(t, func(o *Options) { o.TranslationDirs = []string{dir} })
	if problems := s.TranslationProblems(); len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, want := range map[string]struct {
		class func(error) bool
		why   string
	}{
		"insecure": {}, "one": {}, "proxied": {},
		"two":  {errdefs.IsFailedPrecondition, "redirects more than 1 times"},
		"down": {errdefs.IsFailedPrecondition, "from https to http"},
		"slow": {errdefs.IsUnavailable, "timeout of its transport profile"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Pull(t.Context(), Prefix+name, Credentials{})
			if want.class == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkRefusal(t, err, want.class, want.why)
		})
	}
	if proxied != 1 {
		t.Errorf("the proxy was asked %d times, want once", proxied)
	}
}

func TestFileURLs(t *testing.T) {
	root, outside, dir := t.TempDir(), t.TempDir(), t.TempDir()
	disk := imagetest.QCOW2("file")
	for _, path := range []string{root + "/sub/disk.qcow2", outside + "/disk.qcow2"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside+"/disk.qcow2", root+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../../.."+outside+"/disk.qcow2", root+"/relative"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/disk.qcow2", root+"/inner"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	writeTranslation(t, dir, fmt.Sprintf("translations: [{regexp: '^in/(.*)', url: 'file://%s/$1'}, {name: out, url: 'file://%s/disk.qcow2'}, {name: up, url: 'file://%s/../x'}, {name: lost, url: 'file://%s/lost/d'}]", root, outside, root, outside))
	s := openStore(t, func(o *Options) { o.TranslationDirs, o.FileRoots = []string{dir}, []string{root, outside + "/lost"} })

	for range 2 {
		if image := pull(t, s, Prefix+"in/sub/disk.qcow2"); image.ID != sum(disk) {
			t.Errorf("image %s", image.ID)
		}
	}
	pull(t, s, Prefix+"in/inner")
	for name, want := range map[string]struct {
		class func(error) bool
		why   string
	}{
		"in/none":     {errdefs.IsNotFound, "there is no file"},
		"in/sub":      {errdefs.IsInvalidArgument, "no regular file"},
		"in/fifo":     {errdefs.IsInvalidArgument, "no regular file"},
		"in/link":     {errdefs.IsPermissionDenied, "escapes"},
		"in/relative": {errdefs.IsPermissionDenied, "escapes"},
		"out":         {errdefs.IsPermissionDenied, "in none of the folders"},
		"lost":        {errdefs.IsNotFound, "there is no file"},
		"up":          {errdefs.IsPermissionDenied, "in none of the folders"},
	} {
		_, err := s.Pull(t.Context(), Prefix+name, Credentials{})
		checkRefusal(t, err, want.class, want.why)
	}
	for _, name := range []string{"file/etc/passwd", "file:///etc/passwd"} {
		if _, err := s.Pull(t.Context(), Prefix+name, Credentials{}); err == nil || !strings.Contains(err.Error(), "file") {
			t.Errorf("pull of %s: %v", name, err)
		}
	}
	if left := files(t, s); len(left) != 2 {
		t.Errorf("files %q; want one image", left)
	}
}

// TestFileInTheTimeOfAnother puts a disk in the place of another that is as long and as
// old.
func TestFileInTheTimeOfAnother(t *testing.T) {
	root, dir, old := t.TempDir(), t.TempDir(), time.Now().Add(-time.Hour)
	writeTranslation(t, dir, fmt.Sprintf("translations: [{name: d, url: 'file://%s/d'}]", root))
	s := openStore(t, func(o *Options) { o.TranslationDirs, o.FileRoots = []string{dir}, []string{root} })
	for _, mark := range []string{"1", "2"} {
		disk := imagetest.QCOW2(mark)
		if err := errors.Join(os.WriteFile(root+"/new", disk, 0o600), os.Chtimes(root+"/new", old, old), os.Rename(root+"/new", root+"/d")); err != nil {
			t.Fatal(err)
		}
		if image := pull(t, s, Prefix+"d"); image.ID != sum(disk) {
			t.Errorf("image %s, want that of disk %s", image.ID, mark)
		}
	}
}

// TestFileThatChangesWhileItIsRead must not become an image that is half the one, half
// the other.
func TestFileThatChangesWhileItIsRead(t *testing.T) {
	root := t.TempDir()
	old := time.Now().Add(-time.Hour) // else both contents could be of the same moment
	if err := errors.Join(os.WriteFile(root+"/d", imagetest.Raw("old", 1<<20), 0o600), os.Chtimes(root+"/d", old, old)); err != nil {
		t.Fatal(err)
	}
	place := &filePlace{path: root + "/d", roots: []string{root}}
	opened, err := place.open(t.Context(), 0, validator{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if _, err := io.CopyN(io.Discard, opened, 1<<19); err != nil {
		t.Fatal(err)
	}
	if err := overwrite(root+"/d", 0, imagetest.Raw("new", 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, opened); !errors.Is(err, errTemporary) || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("the rest: %v; want that the file changed", err)
	}
	again, err := place.open(t.Context(), 1<<19, opened.validator)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.offset != 0 {
		t.Errorf("read on from %d; want from the start", again.offset)
	}
}

// TestWrappedFilesAreNotCopied looks at what is in the partial folder when a wrapped
// file of the node is unpacked, and fails one.
func TestWrappedFilesAreNotCopied(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	disk := noisy(imagetest.Raw("file", 1<<20))
	packed := zstded(t, disk)
	for name, content := range map[string][]byte{"good": packed, "cut": packed[:len(packed)-9]} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeTranslation(t, dir, fmt.Sprintf("translations: [{regexp: '(.*)', url: 'file://%s/$1'}]", root))
	s := openStore(t, func(o *Options) { o.TranslationDirs, o.FileRoots = []string{dir}, []string{root} })
	_, err := s.Pull(t.Context(), Prefix+"cut", Credentials{})
	checkRefusal(t, err, errdefs.IsInvalidArgument, "zstd stream is damaged")
	wantEmpty(t, s)

	s.reached = func(at step) error {
		if at != stepReceived {
			return nil
		}
		kept, err := filepath.Glob(s.paths.partialDir() + "/*" + endingBytes)
		if err != nil || len(kept) != 1 {
			t.Fatalf("partial files %q, %v; want one", kept, err)
		}
		if info, err := os.Stat(kept[0]); err != nil || info.Size() > headSize {
			t.Errorf("partial file %v, %v; want the head of %d bytes at most", info.Size(), err, len(packed))
		}
		return nil
	}
	if image := pull(t, s, Prefix+"good"); image.ID != sum(disk) || !strings.HasSuffix(image.Digests[0], sum(packed)) {
		t.Errorf("image %+v", image)
	}
	s.reached = func(step) error { return nil }
	checkConsistent(t, s)
}
