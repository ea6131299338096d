package imagestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nobody is an unprivileged user that every Linux has.
const nobody = 65534

// openStore opens a store that is closed with the test, in a folder of its own
// unless opt gives another.
func openStore(t testing.TB, opts ...func(*Options)) *Store {
	t.Helper()
	o := testOptions(t, opts...)
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.retryWait = func(int) time.Duration { return time.Millisecond }
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testOptions(t testing.TB, opts ...func(*Options)) Options {
	o := Options{
		DefaultProtocol: "http", MinFree: 1,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if os.Getuid() == 0 {
		o.QEMU = &Owner{UID: nobody, GID: nobody}
	}
	for _, opt := range opts {
		opt(&o)
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	return o
}

// inDir makes openStore use a folder.
func inDir(dir string) func(*Options) { return func(o *Options) { o.Dir = dir } }

// server serves files on the loopback interface and counts what it is asked.
type server struct {
	*httptest.Server

	mu       sync.Mutex // guards what follows
	files    map[string][]byte
	etags    map[string]string
	requests []*http.Request
	sent     int64
}

func serve(t testing.TB, files map[string][]byte) *server {
	t.Helper()
	s := &server{files: files, etags: map[string]string{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	content, found := s.files[r.URL.Path]
	etag, tagged := s.etags[r.URL.Path]
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	if !found {
		http.NotFound(w, r)
		return
	}
	if !tagged {
		sum := sha256.Sum256(content)
		etag = `"` + hex.EncodeToString(sum[:8]) + `"`
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	http.ServeContent(countingWriter{w, s}, r, "", time.Time{}, bytes.NewReader(content))
}

type countingWriter struct {
	http.ResponseWriter
	s *server
}

func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.sent += int64(n)
	return n, err
}

func (s *server) put(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = content
}

// asked is how many requests there were, and how many bytes answered them.
func (s *server) asked() (requests int, sent int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests), s.sent
}

// name is the image name of a file on a server.
func imageName(server *httptest.Server, path string) string {
	return Prefix + strings.Replace(server.URL, "://", "/", 1) + path
}

func (s *server) name(path string) string { return imageName(s.Server, path) }

func sum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func pull(t testing.TB, s *Store, name string) Image {
	t.Helper()
	image, err := s.Pull(t.Context(), name, Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// files lists all regular files of a store except its index, with their sizes.
func files(t testing.TB, s *Store) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(s.opts.Dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type().IsRegular() && path != s.paths.index() {
			relative, _ := filepath.Rel(s.opts.Dir, path)
			list = append(list, relative)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// wantEmpty fails if anything but the index is left.
func wantEmpty(t testing.TB, s *Store) {
	t.Helper()
	if left := files(t, s); len(left) > 0 {
		t.Errorf("left in the store: %q", left)
	}
	images, err := s.List()
	if err != nil || len(images) > 0 {
		t.Errorf("List() = %v, %v; want nothing", images, err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(2 * time.Millisecond); !condition(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}
