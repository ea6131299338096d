package imagestore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// flaky serves one file and breaks the connection after some bytes of each answer.
type flaky struct {
	*httptest.Server

	content   atomic.Pointer[[]byte]
	etag      atomic.Pointer[string]
	cut       atomic.Int64 // bytes per answer; 0 means all
	ranges    atomic.Bool  // whether parts are served
	requests  atomic.Int64
	requested chan string // Range headers, as far as there is room
}

func serveFlaky(t testing.TB, content []byte, etag string) *flaky {
	t.Helper()
	f := &flaky{requested: make(chan string, 100)}
	f.content.Store(&content)
	f.etag.Store(&etag)
	f.ranges.Store(true)
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	select {
	case f.requested <- r.Header.Get("Range"):
	default:
	}
	content, etag := *f.content.Load(), *f.etag.Load()
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	first := 0
	if f.ranges.Load() && r.Header.Get("If-Range") == etag {
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); err == nil && first > 0 {
			if first >= len(content) {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(content)))
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(content)-1, len(content)))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)-first))
			w.WriteHeader(http.StatusPartialContent)
		}
	}
	if first == 0 {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	}
	end := len(content)
	if cut := f.cut.Load(); cut > 0 {
		end = min(end, first+int(cut))
	}
	_, _ = w.Write(content[first:end])
}

func (f *flaky) name() string { return imageName(f.Server, "/disk") }

func TestBrokenConnectionIsContinued(t *testing.T) {
	disk := imagetest.QCOW2("a")
	f := serveFlaky(t, disk, `"v1"`)
	f.cut.Store(100_000)
	s := openStore(t)
	if image := pull(t, s, f.name()); image.ID != sum(disk) {
		t.Errorf("image %s; want %s", image.ID, sum(disk))
	}
	for _, want := range []string{"", "bytes=100000-", "bytes=200000-"} {
		if got := <-f.requested; got != want {
			t.Errorf("Range %q, want %q", got, want)
		}
	}
	if f.requests.Load() != 3 {
		t.Errorf("%d requests, want 3", f.requests.Load())
	}
}

// TestDownloadIsContinuedAfterRestart cancels a pull half-way, reopens the store
// and pulls again, for plain and for wrapped images.
func TestDownloadIsContinuedAfterRestart(t *testing.T) {
	raw := imagetest.Raw("restart", 1<<20)
	for name, content := range map[string][]byte{
		"plain": raw, "gzip": gzipped(t, noisy(raw)), "zstd": zstded(t, noisy(raw)), "xz": xzed(t, noisy(raw)),
	} {
		t.Run(name, func(t *testing.T) {
			f := serveFlaky(t, content, `"v1"`)
			half := int64(len(content)) / 2
			f.cut.Store(half)
			s := openStore(t)
			ctx, cancel := context.WithCancel(t.Context())
			s.retryWait = func(int) time.Duration {
				cancel()
				return time.Hour
			}
			if _, err := s.Pull(ctx, f.name(), Credentials{}); !errors.Is(err, context.Canceled) {
				t.Fatalf("cancelled pull: %v", err)
			}
			where, _ := s.locate(mustParse(t, f.name()))
			eventually(t, "the flight is gone", func() bool { return s.flights.waiting(where.key()) == 0 && len(s.Progress()) == 0 })
			part, err := os.Stat(s.paths.partialDir() + "/" + where.key() + endingBytes)
			if err != nil || part.Size() != half {
				t.Fatalf("partial file: %v, %v; want %d bytes", part, err, half)
			}
			s.flights.stop()
			s = reopen(t, s)

			f.cut.Store(0)
			<-f.requested
			image := pull(t, s, f.name())
			if got, want := <-f.requested, fmt.Sprintf("bytes=%d-", half); got != want {
				t.Errorf("Range %q, want %q", got, want)
			}
			if left := files(t, s); len(left) != 2 {
				t.Errorf("files %q; want data and description only", left)
			}
			stored, err := os.ReadFile(image.Path)
			if err != nil || sum(stored) != image.ID || image.Size != int64(len(raw)) {
				t.Errorf("image %+v, stored %s, %v", image, sum(stored), err)
			}
			if !strings.HasSuffix(image.Digests[0], sum(content)) {
				t.Errorf("digests %q; want that of the bytes sent, %s", image.Digests, sum(content))
			}
		})
	}
}

// noisy makes a disk that does not compress to nothing.
func noisy(disk []byte) []byte {
	state := uint64(1)
	for i := 1024; i < len(disk); i++ {
		state = state*6364136223846793005 + 1442695040888963407
		disk[i] = byte(state >> 56)
	}
	return disk
}

func TestChangeDuringDownload(t *testing.T) {
	before, after := imagetest.QCOW2("before"), imagetest.QCOW2("after")
	for _, tc := range []struct {
		name   string
		etag   string
		ranges bool
	}{
		{"the server notices", `"v2"`, true},
		{"the server serves no parts", `"v1"`, false},
		{"the server has no validators", "", false},
		{"the server has weak validators", `W/"v1"`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			first := `"v1"`
			if tc.etag != `"v2"` {
				first = tc.etag
			}
			f := serveFlaky(t, before, first)
			f.cut.Store(100_000)
			f.ranges.Store(tc.ranges)
			s := openStore(t)
			s.retryWait = func(int) time.Duration {
				f.content.Store(&after)
				f.etag.Store(&tc.etag)
				f.cut.Store(0)
				return time.Millisecond
			}
			if image := pull(t, s, f.name()); image.ID != sum(after) {
				t.Errorf("image %s; want the new content %s, never a mixture", image.ID, sum(after))
			}
		})
	}
}

func TestCompletePartialFileIsUsed(t *testing.T) {
	disk := imagetest.QCOW2("a")
	f := serveFlaky(t, disk, `"v1"`)
	s := openStore(t)
	where, _ := s.locate(mustParse(t, f.name()))
	part, err := openPartial(s.paths, where.key())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(part.begin(validator{ETag: `"v1"`, Strong: true, Total: int64(len(disk))}), part.append(disk), part.close(true)); err != nil {
		t.Fatal(err)
	}
	if image := pull(t, s, f.name()); image.ID != sum(disk) {
		t.Errorf("image %s", image.ID)
	}
	if got, want := <-f.requested, fmt.Sprintf("bytes=%d-", len(disk)); got != want || f.requests.Load() != 1 {
		t.Errorf("Range %q in %d requests; want %q in one", got, f.requests.Load(), want)
	}
}

func TestForgottenPartialsAreSwept(t *testing.T) {
	s := openStore(t)
	long, fresh := hashKey("long ago"), hashKey("just now")
	for _, key := range []string{long, fresh} {
		part, err := openPartial(s.paths, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(part.begin(validator{Strong: true, Total: 9}), part.append([]byte("x")), part.close(true)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * partialLifetime)
	if err := os.Chtimes(s.paths.partialDir()+"/"+long+endingBytes, old, old); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fresh + endingUnpacked, ".new-123", "nonsense", hashKey("no bytes") + endingValidator} {
		if err := os.WriteFile(s.paths.partialDir()+"/"+name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	want := []string{"partial/" + fresh + endingValidator, "partial/" + fresh + endingBytes}
	if got := files(t, s); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("left after the sweep: %q, want %q", got, want)
	}
}

func TestProgress(t *testing.T) {
	disk := imagetest.QCOW2("a")
	sent, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
		_, _ = w.Write(disk[:100_000])
		_ = http.NewResponseController(w).Flush()
		close(sent)
		<-release
		_, _ = w.Write(disk[100_000:])
	}))
	t.Cleanup(server.Close)
	s := openStore(t)
	name := imageName(server, "/d")
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), name, Credentials{})
		done <- err
	}()
	<-sent
	var got []Transfer
	eventually(t, "100,000 bytes have arrived", func() bool {
		got = s.Progress()
		return len(got) == 1 && got[0].Done == 100_000
	})
	if p := got[0]; p.Name != name+":latest" || p.Source != server.URL+"/d" || p.Total != int64(len(disk)) || p.Rate <= 0 || p.Remaining < 0 {
		t.Errorf("progress %+v", p)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if left := s.Progress(); len(left) != 0 {
		t.Errorf("progress after the end: %+v", left)
	}
}

func TestSlowReaderIsNoStall(t *testing.T) {
	// Only waiting for the server counts: a busy disk must not end a download.
	f := serveFlaky(t, imagetest.Raw("slow", 8<<20), `"v1"`)
	s := openStore(t, func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	where, _ := s.locate(mustParse(t, f.name()))
	part, err := openPartial(s.paths, where.key())
	if err != nil {
		t.Fatal(err)
	}
	d := &download{place: newHTTPPlace(where, Credentials{}, origin{}), part: part, store: s, transfer: &transfer{fetched: s.counters.fetched}}
	defer func() {
		if err := errors.Join(d.disconnect(), part.close(false)); err != nil {
			t.Error(err)
		}
		d.place.close()
	}()
	if err := d.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := d.reader(t.Context())
	for range 3 {
		if _, err := in.Read(make([]byte, 1000)); err != nil {
			t.Fatalf("read after a long pause of our own: %v", err)
		}
		timer := time.NewTimer(80 * time.Millisecond)
		<-timer.C
	}
	if f.requests.Load() != 1 {
		t.Errorf("%d requests; the download was thought to stall", f.requests.Load())
	}
}
