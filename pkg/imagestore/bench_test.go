package imagestore

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// The benchmarks compare the store with command-line tools, turn by turn in one
// run, and fail when the median ratio is above what users were promised.
const (
	benchSize  = 1 << 30
	benchTurns = 5

	maxPullRatio   = 1.10
	maxManyRatio   = 1.15
	maxUnwrapRatio = 1.15
	maxPullMemory  = 64 << 20
	maxListTime    = 20 * time.Millisecond
	manyPulls      = 50
	manyImages     = 5000
)

// Variables that make the test binary a server of a folder, or a store that pulls.
const (
	benchServe = "IMAGESTORE_BENCH_SERVE"
	benchPull  = "IMAGESTORE_BENCH_PULL"
	benchDir   = "IMAGESTORE_BENCH_DIR"
)

// TestBenchProcess is the other process of the benchmarks; alone it does nothing.
func TestBenchProcess(t *testing.T) {
	switch {
	case os.Getenv(benchServe) != "":
		listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // lives as long as the process
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("address", listener.Addr())
		_ = http.Serve(listener, http.FileServer(http.Dir(os.Getenv(benchServe))))
	case os.Getenv(benchPull) != "":
		s := openStore(t, inDir(os.Getenv(benchDir)))
		idle := memory(t, "VmRSS")
		pull(t, s, os.Getenv(benchPull))
		fmt.Println("above-idle", memory(t, "VmHWM")-idle)
	}
}

// memory reads a figure of this process, in bytes.
func memory(t testing.TB, field string) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kilobytes, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("no %s in /proc/self/status", field)
	return 0
}

// serveFolder starts a process that serves a folder, and returns its URL.
func serveFolder(b *testing.B, dir string) string {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestBenchProcess$")
	cmd.Env = append(os.Environ(), benchServe+"="+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if address, ok := strings.CutPrefix(lines.Text(), "address "); ok {
			return "http://" + address
		}
	}
	b.Fatal("the server did not start")
	return ""
}

// benchDisk writes a raw disk of which about half compresses.
func benchDisk(b *testing.B, path string, size int) {
	b.Helper()
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	source := rand.NewChaCha8([32]byte{1})
	chunk := imagetest.Raw("benchmark", 1<<20)
	for range size >> 20 {
		if _, err := file.Write(chunk); err != nil {
			b.Fatal(err)
		}
		_, _ = source.Read(chunk[:len(chunk)/2])
	}
	if err := file.Close(); err != nil {
		b.Fatal(err)
	}
}

// systemDisk writes a raw disk of what real ones are full of: this system's
// programs and libraries.
func systemDisk(b *testing.B, path string, size int64) {
	b.Helper()
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := file.Write(imagetest.Raw("system", 4096)); err != nil {
		b.Fatal(err)
	}
	left := size - 4096
	for left > 0 {
		before := left
		err := filepath.WalkDir("/usr", func(path string, entry os.DirEntry, err error) error {
			if err != nil || left == 0 || !entry.Type().IsRegular() {
				return err
			}
			from, err := os.Open(path)
			if err != nil {
				return err
			}
			n, err := io.CopyN(file, from, left)
			left -= n
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, from.Close())
		})
		if err != nil || left == before {
			b.Fatalf("fill a disk from /usr: %v", err)
		}
	}
	if err := file.Close(); err != nil {
		b.Fatal(err)
	}
}

// quiet is a store whose log does not disturb the measurement.
func quiet(o *Options) { o.Logger = slog.New(slog.DiscardHandler) }

// compare runs both turn by turn and judges the median ratio of their times.
func compare(b *testing.B, limit float64, reference, ours func() time.Duration) {
	b.Helper()
	for b.Loop() {
		var ratios []float64
		for range benchTurns {
			theirs, mine := reference(), ours()
			ratios = append(ratios, mine.Seconds()/theirs.Seconds())
			b.Logf("reference %v, ours %v, ratio %.3f", theirs.Round(time.Millisecond), mine.Round(time.Millisecond), ratios[len(ratios)-1])
		}
		slices.Sort(ratios)
		median := ratios[len(ratios)/2]
		b.ReportMetric(median, "ratio")
		b.ReportMetric(limit, "limit")
		if median > limit {
			b.Errorf("the median ratio is %.3f; at most %.2f was promised", median, limit)
		}
	}
}

func timed(b *testing.B, act func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := act(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

func shell(b *testing.B, script string, args ...string) func() error {
	return func() error {
		cmd := exec.CommandContext(b.Context(), "bash", append([]string{"-euo", "pipefail", "-c", script, "bash"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", script, err, out)
		}
		return nil
	}
}

// pullFresh pulls into an empty store and returns how long that took.
func pullFresh(b *testing.B, name string, pulls int) time.Duration {
	b.Helper()
	s, err := Open(b.Context(), testOptions(b, quiet))
	if err != nil {
		b.Fatal(err)
	}
	took := timed(b, func() error {
		var group sync.WaitGroup
		errs := make(chan error, pulls)
		for range pulls {
			group.Go(func() {
				_, err := s.Pull(b.Context(), name, Credentials{})
				errs <- err
			})
		}
		group.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if err := os.RemoveAll(s.opts.Dir); err != nil {
		b.Fatal(err)
	}
	return took
}

func BenchmarkPullAgainstCurl(b *testing.B) {
	dir := b.TempDir()
	benchDisk(b, filepath.Join(dir, "disk"), benchSize)
	url := serveFolder(b, dir)
	name := Prefix + strings.Replace(url, "://", "/", 1) + "/disk"
	target := filepath.Join(dir, "copy")
	compare(b, maxPullRatio,
		func() time.Duration {
			defer os.Remove(target)
			return timed(b, shell(b, `curl -sSf "$1" | tee "$2" | sha256sum`, url+"/disk", target))
		},
		func() time.Duration { return pullFresh(b, name, 1) })
}

func BenchmarkManyPullsAgainstOne(b *testing.B) {
	dir := b.TempDir()
	benchDisk(b, filepath.Join(dir, "disk"), benchSize)
	url := serveFolder(b, dir)
	name := Prefix + strings.Replace(url, "://", "/", 1) + "/disk"
	compare(b, maxManyRatio,
		func() time.Duration { return pullFresh(b, name, 1) },
		func() time.Duration { return pullFresh(b, name, manyPulls) })
}

func BenchmarkPullMemory(b *testing.B) {
	dir := b.TempDir()
	benchDisk(b, filepath.Join(dir, "disk"), benchSize)
	url := serveFolder(b, dir)
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestBenchProcess$")
		cmd.Env = append(os.Environ(),
			benchPull+"="+Prefix+strings.Replace(url, "://", "/", 1)+"/disk", benchDir+"="+b.TempDir())
		out, err := cmd.Output()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		var above int64
		for line := range strings.Lines(string(out)) {
			_, _ = fmt.Sscanf(line, "above-idle %d", &above)
		}
		b.ReportMetric(float64(above)/(1<<20), "MiB-above-idle")
		if above <= 0 || above > maxPullMemory {
			b.Errorf("a pull took %d bytes above idle; at most %d were promised", above, maxPullMemory)
		}
	}
}

func BenchmarkUnwrapAgainstTools(b *testing.B) {
	for _, tool := range []struct{ name, pack, unpack, ending string }{
		{"gzip", "gzip -1 -k", "gzip -dc", ".gz"},
		{"xz", "xz -T2 -0 -k", "xz -dc", ".xz"},
		{"zstd", "zstd -q -3 -k", "zstd -q -dc", ".zst"},
	} {
		b.Run(tool.name, func(b *testing.B) {
			dir := b.TempDir()
			systemDisk(b, filepath.Join(dir, "disk"), benchSize/2)
			if err := shell(b, tool.pack+` "$1"`, filepath.Join(dir, "disk"))(); err != nil {
				b.Fatal(err)
			}
			url := serveFolder(b, dir)
			name := Prefix + strings.Replace(url, "://", "/", 1) + "/disk" + tool.ending
			target := filepath.Join(dir, "copy")
			compare(b, maxUnwrapRatio,
				func() time.Duration {
					defer os.Remove(target)
					return timed(b, shell(b, tool.unpack+` "$1" > "$2"`, filepath.Join(dir, "disk"+tool.ending), target))
				},
				func() time.Duration { return pullFresh(b, name, 1) })
		})
	}
}

// BenchmarkList lists 5,000 images.
func BenchmarkList(b *testing.B) {
	s := openStore(b, quiet)
	var c change
	for i := range manyImages {
		id := sum([]byte(strconv.Itoa(i)))
		name := fmt.Sprintf("%sexample.org/images/disk-%d.qcow2", Prefix, i)
		c.put = append(c.put, &record{
			ID: id, Names: []string{name + ":latest"}, Digests: []string{name + "@sha256:" + id},
			Size: 1 << 30, VirtualSize: 1 << 33, Format: FormatQCOW2, PulledAt: time.Now(),
		})
	}
	if err := s.index.apply(c); err != nil {
		b.Fatal(err)
	}
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		images, err := s.List()
		times = append(times, time.Since(began))
		if err != nil || len(images) != manyImages {
			b.Fatalf("%d images, %v", len(images), err)
		}
	}
	slices.Sort(times)
	median := times[len(times)/2]
	b.ReportMetric(float64(median.Microseconds())/1000, "ms-p50")
	if median > maxListTime {
		b.Errorf("the median is %v; at most %v was promised", median, maxListTime)
	}
}

// BenchmarkHash is the speed of the pipeline without network and disk.
func BenchmarkHash(b *testing.B) {
	content := imagetest.Raw("hash", 64<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		_, _, err := copyHashed(io.Discard, bytes.NewReader(content), func(int64) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
}
