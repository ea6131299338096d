package console

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest writes a console and rotates it as virtlogd does.
type guest struct {
	t       *testing.T
	path    string
	backups int
	all     []byte // everything that was ever printed
	file    *os.File
}

func newGuest(t *testing.T, dir string) *guest {
	t.Helper()
	g := &guest{t: t, path: filepath.Join(dir, "console.log"), backups: 3}
	g.open()
	t.Cleanup(func() { g.file.Close() })
	return g
}

func (g *guest) open() {
	g.t.Helper()
	file, err := os.OpenFile(g.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	g.file = file
}

func (g *guest) print(text string) {
	g.t.Helper()
	if _, err := g.file.WriteString(text); err != nil {
		g.t.Fatal(err)
	}
	g.all = append(g.all, text...)
}

func (g *guest) rotate() {
	g.t.Helper()
	g.file.Close()
	for n := g.backups - 1; n > 0; n-- {
		err := os.Rename(g.path+"."+strconv.Itoa(n-1), g.path+"."+strconv.Itoa(n))
		if err != nil && !os.IsNotExist(err) {
			g.t.Fatal(err)
		}
	}
	if err := os.Rename(g.path, g.path+".0"); err != nil {
		g.t.Fatal(err)
	}
	g.open()
}

// logged collects what a package logs.
type logged struct{ bytes.Buffer }

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(&l.Buffer, nil)) }

func testOptions(dir string, log *slog.Logger) Options {
	return Options{
		Console: filepath.Join(dir, "console.log"), Log: filepath.Join(dir, "pod", "0.log"),
		State: filepath.Join(dir, "console.state"), Logger: log,
	}
}

func testFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "pod"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rehearsal runs a copier by hand, so that it can be killed between any two steps.
type rehearsal struct {
	t       *testing.T
	options Options
	watcher *Watcher
	watched watchedFile
	copier  copier
	clock   time.Time
	done    []string // logs that kubelet has moved away
}

func newRehearsal(t *testing.T, dir string, log *slog.Logger) *rehearsal {
	t.Helper()
	r := &rehearsal{t: t, options: testOptions(dir, log), watcher: newTestWatcher(t), clock: testTime}
	r.start()
	return r
}

func newTestWatcher(t *testing.T) *Watcher {
	t.Helper()
	w, err := NewWatcher(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func (r *rehearsal) start() {
	r.t.Helper()
	var err error
	if r.copier, err = newCopier(r.options); err != nil {
		r.t.Fatal(err)
	}
	r.copier.now = func() time.Time { return r.clock }
	r.watched = watchedFile{watcher: r.watcher, wake: make(chan struct{}, 1)}
}

// kill drops the copier as it is, as the kernel does with a process.
func (r *rehearsal) kill() {
	r.watched.forget()
	r.copier.close()
}

func (r *rehearsal) copy(limit int, flush bool) {
	r.t.Helper()
	if _, err := r.copier.copySome(&r.watched, limit, flush); err != nil {
		r.t.Fatal(err)
	}
}

// copyAndDie ends after the records were written and before the state was.
func (r *rehearsal) copyAndDie(limit int) {
	r.t.Helper()
	before, err := os.ReadFile(r.options.State)
	if err != nil {
		r.t.Fatal(err)
	}
	r.copy(limit, false)
	if err := os.WriteFile(r.options.State, before, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.kill()
}

// moveLog is what kubelet does to rotate a log.
func (r *rehearsal) moveLog() {
	r.t.Helper()
	moved := r.options.Log + "." + strconv.Itoa(len(r.done))
	if err := os.Rename(r.options.Log, moved); err != nil {
		r.t.Fatal(err)
	}
	r.done = append(r.done, moved)
	if err := r.copier.reopen(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rehearsal) logs() string {
	r.t.Helper()
	var all []byte
	for _, path := range append(r.done, r.options.Log) {
		text, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, text...)
	}
	return decode(r.t, all)
}

// Whatever happens in whatever order, the logs in the end say once what the guest
// printed.
func TestExactlyOnceWhateverHappens(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			dir := testFolder(t)
			var warnings logged
			random := rand.New(rand.NewPCG(seed, 1))
			g := newGuest(t, dir)
			g.backups = 50
			r := newRehearsal(t, dir, warnings.logger())
			var history []string
			for range 60 {
				step := random.IntN(10)
				history = append(history, strconv.Itoa(step))
				switch step {
				case 0, 1, 2:
					g.print(randomOutput(random))
				case 3:
					g.print("end of file")
					g.rotate()
				case 4, 5:
					r.copy(1+random.IntN(2*bufferSize), false)
				case 6:
					r.clock = r.clock.Add(promptTime)
					r.copy(1<<20, false)
				case 7:
					r.moveLog()
				case 8:
					r.kill()
					r.start()
				case 9:
					r.copyAndDie(1 + random.IntN(2*bufferSize))
					r.start()
				}
			}
			g.print("\n")
			r.copy(1<<30, true)
			r.kill()
			if diff := cmp.Diff(plain(g.all), r.logs()); diff != "" {
				t.Errorf("steps %s:\n%s", strings.Join(history, ""), diff)
			}
			if warnings.Len() > 0 {
				t.Errorf("warned: %s", warnings.String())
			}
		})
	}
}

func randomOutput(random *rand.Rand) string {
	pieces := []string{"\n", "\r\n", "\r", "login: ", "\x1b[1m", "\xff", "line\n", strings.Repeat("long ", 8000)}
	var text strings.Builder
	for range random.IntN(12) {
		text.WriteString(pieces[random.IntN(len(pieces))])
		fmt.Fprintf(&text, "%d", random.IntN(1000))
	}
	return text.String()
}

// The state is lost or damaged: the console is copied again rather than not at all.
func TestDamagedState(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "not JSON": "{", "newer": `{"version":99}`, "negative": `{"version":1,"offset":-1}`} {
		t.Run(name, func(t *testing.T) {
			dir := testFolder(t)
			g := newGuest(t, dir)
			g.print("hello\n")
			if err := os.WriteFile(filepath.Join(dir, "console.state"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var warnings logged
			r := newRehearsal(t, dir, warnings.logger())
			r.copy(1<<20, true)
			r.kill()
			if got := r.logs(); got != "hello\n" {
				t.Errorf("the log says %q", got)
			}
			if !strings.Contains(warnings.String(), "from the start") {
				t.Errorf("no warning, but %q", warnings.String())
			}
		})
	}
}

// Output that was rotated away is reported, and what is left is copied.
func TestLostOutput(t *testing.T) {
	lose := map[string]func(*testing.T, *guest){
		"rotated away": func(_ *testing.T, g *guest) {
			for n := range 6 {
				g.print("lost or kept " + strconv.Itoa(n) + "\n")
				g.rotate()
			}
		},
		"cut off": func(t *testing.T, g *guest) {
			if err := os.Truncate(g.path, 0); err != nil {
				t.Fatal(err)
			}
			g.print("lost or kept 5\n")
		},
	}
	for name, act := range lose {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", name, restarted), func(t *testing.T) {
				dir := testFolder(t)
				g := newGuest(t, dir)
				g.print("a line that is long enough\nunfinished")
				var warnings logged
				r := newRehearsal(t, dir, warnings.logger())
				r.copy(1<<20, false)
				if restarted {
					r.kill()
				}
				act(t, g)
				if restarted {
					r.start()
				}
				r.copy(1<<20, true)
				r.kill()
				got := r.logs()
				if !strings.HasPrefix(got, "a line that is long enough\n") || !strings.HasSuffix(got, "lost or kept 5\n") {
					t.Errorf("the log says %q", got)
				}
				if strings.Count(warnings.String(), "output is missing") != 1 {
					t.Errorf("want one warning, got %q", warnings.String())
				}
			})
		}
	}
}

// When the state cannot be written the records are taken back, and both come later.
func TestStateNotWritable(t *testing.T) {
	dir := testFolder(t)
	g := newGuest(t, dir)
	r := newRehearsal(t, dir, slog.New(slog.DiscardHandler))
	obstacle := filepath.Join(dir, ".console.state.new")
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	g.print("hello\n" + strings.Repeat("y", 5*bufferSize) + "\n")
	for range 2 {
		if _, err := r.copier.copySome(&r.watched, 1<<20, false); err == nil {
			t.Fatal("copying succeeded without a state")
		}
		if got := r.logs(); got != "" {
			t.Errorf("the log says %.40q before the state was written", got)
		}
	}
	if err := r.copier.reopen(); err == nil {
		t.Error("reopening succeeded without a state")
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	r.copy(1<<20, false)
	r.kill()
	if diff := cmp.Diff(plain(g.all), r.logs()); diff != "" {
		t.Error(diff)
	}
}

func TestReopenFailureLeavesNoFile(t *testing.T) {
	dir := testFolder(t)
	g := newGuest(t, dir)
	r := newRehearsal(t, dir, slog.New(slog.DiscardHandler))
	obstacle := filepath.Join(dir, ".console.state.new")
	moved := r.options.Log + ".moved"
	for _, err := range []error{os.Mkdir(obstacle, 0o700), os.Rename(r.options.Log, moved)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.copier.reopen(); err == nil {
		t.Fatal("reopening succeeded without a state")
	}
	if _, err := os.Lstat(r.options.Log); !os.IsNotExist(err) {
		t.Errorf("the new log exists (%v)", err)
	}
	for _, err := range []error{os.Remove(obstacle), os.Rename(moved, r.options.Log)} { // as kubelet does
		if err != nil {
			t.Fatal(err)
		}
	}
	g.print("still here\n")
	r.copy(1<<20, false)
	r.kill()
	if got := r.logs(); got != "still here\n" {
		t.Errorf("the log says %q", got)
	}
}

func TestLogMode(t *testing.T) {
	r := newRehearsal(t, testFolder(t), slog.New(slog.DiscardHandler))
	r.kill()
	info, err := os.Stat(r.options.Log)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != logMode {
		t.Errorf("mode is %v, want -rw-r-----", info.Mode())
	}
}

// The buffer is small while a guest prints little; a line of any length is in one record
// all the same, however it arrives.
func TestBufferGrowsAndShrinks(t *testing.T) {
	dir := testFolder(t)
	g := newGuest(t, dir)
	r := newRehearsal(t, dir, slog.New(slog.DiscardHandler))
	for _, first := range []int{1, idleSize - 1, idleSize, idleSize + 1, 3 * idleSize, maxContent - 10} {
		line := strings.Repeat("z", first)
		g.print(line)
		r.copy(1<<20, false)
		if log, err := os.ReadFile(r.options.Log); err != nil || strings.HasSuffix(string(log), "z\n") {
			t.Errorf("the unfinished line of %d bytes is in the log already: %v", first, err)
		}
		g.print(" end\n")
		r.copy(1<<20, false)
		log, err := os.ReadFile(r.options.Log)
		if err != nil || !strings.HasSuffix(string(log), " F "+line+" end\n") {
			t.Errorf("the line of %d bytes in two parts is not one record: %v", first, err)
		}
		if size := len(r.copier.buffer); size != idleSize {
			t.Errorf("after a line of %d bytes the buffer has %d", first, size)
		}
	}
	g.print(strings.Repeat("flood\n", bufferSize))
	r.copy(4*idleSize, false) // amidst the flood
	if size := len(r.copier.buffer); size != bufferSize {
		t.Errorf("amidst a flood the buffer has %d bytes, want %d", size, bufferSize)
	}
	r.copy(1<<20, true)
	if got := r.logs(); got != string(g.all) {
		t.Errorf("of %d bytes the log has %d", len(g.all), len(got))
	}
}
