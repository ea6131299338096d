package imagestore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// halting sends half of its content and then nothing, until it is told to go on.
type halting struct {
	*httptest.Server

	content []byte
	etag    string
	halts   bool
	halted  chan struct{}
	ranges  []string
}

func serveHalting(t *testing.T, content []byte) *halting {
	t.Helper()
	h := &halting{content: content, etag: `"v1"`, halts: true, halted: make(chan struct{}, 9)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", h.etag)
		if h.halts {
			w.Header().Set("Content-Length", fmt.Sprint(len(h.content)))
			_, _ = w.Write(h.content[:len(h.content)/2])
			_ = http.NewResponseController(w).Flush()
			h.halted <- struct{}{}
			<-r.Context().Done()
			return
		}
		h.ranges = append(h.ranges, r.Header.Get("Range"))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.content))
	}))
	t.Cleanup(h.Close)
	return h
}

// TestCrashWhileDownloading kills a pull while bytes arrive. The next start has the old
// state, and the next pull goes on from where the first was, unless the server has
// something else by then.
func TestCrashWhileDownloading(t *testing.T) {
	disk := noisy(imagetest.Raw("crash", 1<<20))
	for _, kind := range []struct {
		name    string
		sent    []byte
		changed bool
	}{
		{"plain", disk, false},
		{"gzip", gzipped(t, disk), false},
		{"xz", xzed(t, disk), false},
		{"zstd", zstded(t, disk), false},
		{"changed meanwhile", disk, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			h := serveHalting(t, kind.sent)
			s := openStore(t)
			other := serve(t, map[string][]byte{"/other": imagetest.QCOW2("other")})
			pull(t, s, other.name("/other"))
			before, _ := s.List()
			dir, name := s.opts.Dir, imageName(h.Server, "/d")
			where, _ := s.locate(mustParse(t, name))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			killDownload(t, h, dir, name, s.paths.partialDir()+"/"+where.key()+endingBytes)

			s = openStore(t, inDir(dir))
			if after, _ := s.List(); !cmp.Equal(before, after) {
				t.Errorf("state after the crash (-want +got):\n%s", cmp.Diff(before, after))
			}
			checkConsistent(t, s)
			h.halts = false
			want, wantRange := sum(disk), fmt.Sprintf("bytes=%d-", len(kind.sent)/2)
			if kind.changed {
				h.content, h.etag = imagetest.QCOW2("new"), `"v2"`
				want = sum(h.content)
			}
			if image := pull(t, s, name); image.ID != want {
				t.Errorf("image %s, want %s", image.ID, want)
			}
			if len(h.ranges) == 0 || h.ranges[0] != wantRange {
				t.Errorf("ranges %q were asked for, want %q first", h.ranges, wantRange)
			}
			checkConsistent(t, s)
		})
	}
}

// killDownload runs a pull in a process of its own, and kills it when half of the bytes
// are in the partial file.
func killDownload(t *testing.T, h *halting, dir, name, partial string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashingProcess$")
	cmd.Env = append(os.Environ(), crashStep+"=never", crashDir+"="+dir, crashDo+"=pull "+name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-h.halted
	eventually(t, "half of the bytes are on the disk", func() bool {
		info, err := os.Stat(partial)
		return err == nil && info.Size() == int64(len(h.content)/2)
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

// TestLastCancelLeavesResumableFile lets two callers of one download go.
func TestLastCancelLeavesResumableFile(t *testing.T) {
	disk := noisy(imagetest.Raw("cancel", 1<<20))
	h := serveHalting(t, disk)
	s := openStore(t)
	name := imageName(h.Server, "/d")
	where, _ := s.locate(mustParse(t, name))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := s.Pull(ctx, name, Credentials{})
			ended <- err
		}()
	}
	<-h.halted
	partial := s.paths.partialDir() + "/" + where.key() + endingBytes
	eventually(t, "both wait and half of the bytes are here", func() bool {
		info, err := os.Stat(partial)
		return s.flights.waiting(where.key()) == 2 && err == nil && info.Size() == int64(len(disk)/2)
	})
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled pull: %v", err)
		}
	}
	eventually(t, "the download has ended", func() bool { return len(s.Progress()) == 0 })
	if info, err := os.Stat(partial); err != nil || info.Size() != int64(len(disk)/2) {
		t.Errorf("partial file %v, %v; want half", info, err)
	}
	h.halts = false
	if image := pull(t, s, name); image.ID != sum(disk) || !cmp.Equal(h.ranges, []string{fmt.Sprintf("bytes=%d-", len(disk)/2)}) {
		t.Errorf("image %s, ranges %q", image.ID, h.ranges)
	}
}

// TestProgressIsLogged has ten seconds pass at every look at the clock.
func TestProgressIsLogged(t *testing.T) {
	var log bytes.Buffer
	disk := imagetest.Raw("log", 4<<20)
	srv := serve(t, map[string][]byte{"/d": disk})
	s := openStore(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	looks := 0
	s.now = func() time.Time {
		looks++
		return time.Unix(int64(looks)*int64(tellEvery/time.Second), 0)
	}
	pull(t, s, srv.name("/d"))
	told := 0
	for lines := bufio.NewScanner(&log); lines.Scan(); {
		line := lines.Text()
		if !strings.Contains(line, `msg="image download"`) {
			continue
		}
		told++
		for _, field := range []string{"image=" + srv.name("/d:latest"), "source=" + srv.URL + "/d", " done=", fmt.Sprintf(" total=%d", len(disk)), " rate=", " remaining="} {
			if !strings.Contains(line, field) {
				t.Errorf("%q is missing in %s", field, line)
			}
		}
	}
	if told < 2 {
		t.Errorf("progress was logged %d times", told)
	}
}

// TestCheckIsConfined has a program in qemu-img's place tell what it may do.
func TestCheckIsConfined(t *testing.T) {
	programs(t, `echo "user $(id -u) cpu $(ulimit -t) memory $(ulimit -v) writes $(ulimit -f) core $(ulimit -c) folder $PWD secret ${AMBIPOD_SECRET-none} arguments $*"
exit 1
`, "qemu-img")
	t.Setenv("AMBIPOD_SECRET", "42")
	user := os.Getuid()
	if user == 0 {
		user = nobody
	}
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
	want := fmt.Sprintf("user %d cpu 120 memory 2097152 writes 0 core 0 folder / secret none arguments check -q -f qcow2 /proc/self/fd/3", user)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("err = %v; want %q in it", err, want)
	}
	wantEmpty(t, s)
}

// TestCheckThatHangs has a program in qemu-img's place that never ends by itself.
func TestCheckThatHangs(t *testing.T) {
	programs(t, "exec sleep 1000\n", "qemu-img")
	s := openStore(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, imagetest.QCOW2("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = s.checkDisk(ctx, file)
	checkRefusal(t, err, errdefs.IsInvalidArgument, "qemu-img check did not finish")
}
