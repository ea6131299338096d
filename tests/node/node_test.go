package node

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadPodLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	text := "2026-01-02T03:04:05.123456789Z stdout F hello world\n" +
		"2026-01-02T03:04:06+02:00 stderr P  \n" +
		"2026-01-02T03:04:07Z stdout F \n" +
		"2026-01-02T03:04:08Z stdout F not yet compl"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadPodLog(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []LogLine{
		{Time: time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC), Stream: "stdout", Text: "hello world"},
		{Time: time.Date(2026, 1, 2, 1, 4, 6, 0, time.UTC), Stream: "stderr", Partial: true, Text: " "},
		{Time: time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC), Stream: "stdout"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadPodLogRefusesOtherFormats(t *testing.T) {
	for _, text := range []string{
		"hello\n",
		`{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n",
		"2026-01-02 03:04:05 stdout F hello\n",
		"2026-01-02T03:04:05Z stdin F hello\n",
		"2026-01-02T03:04:05Z stdout X hello\n",
		"2026-01-02T03:04:05Z stdout F\n",
		"2026-01-02T03:04:05Z stdout F fine\n\n",
	} {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if lines, err := ReadPodLog(path); !errdefs.IsDataLoss(err) {
			t.Errorf("%q was read as %v, error %v; want ErrDataLoss", text, lines, err)
		}
	}
}

func TestFreePrefixAvoidsWhatIsTaken(t *testing.T) {
	first := freePrefix(7, podCandidate, nil)
	if !first.IsValid() || first.Bits() != podPrefix {
		t.Fatalf("first candidate is %s", first)
	}
	second := freePrefix(7, podCandidate, []netip.Prefix{first})
	if second.Overlaps(first) {
		t.Errorf("%s overlaps %s", second, first)
	}
	if got := freePrefix(7, podCandidate, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); got.IsValid() {
		t.Errorf("%s is called free although all of 10.0.0.0/8 is taken", got)
	}
}

func TestCandidatesStayInTheirRange(t *testing.T) {
	pods, links := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16")
	for _, seed := range []uint32{0, 1, 1 << 15, 1<<31 - 1, 1<<32 - 1} {
		if p := podCandidate(seed); !pods.Overlaps(p) || p != p.Masked() {
			t.Errorf("pod network for seed %d is %s", seed, p)
		}
		if p := linkCandidate(seed); !links.Overlaps(p) || p != p.Masked() {
			t.Errorf("link for seed %d is %s", seed, p)
		}
	}
}

func TestEnvIsReadByAShell(t *testing.T) {
	const nasty = `/srv/it's "$HOME" here`
	n := newNode(Config{Checkout: "/checkout", Name: "x"})
	n.root = nasty
	n.net.Pods = netip.MustParsePrefix("10.64.0.0/24")
	script := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(script, []byte(n.Env()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", `. "$1"; printf %s "$CRICTL"`, "sh", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := nasty + "/bin/crictl"; string(out) != want {
		t.Errorf("CRICTL is %q for a shell, want %q", out, want)
	}
}

func TestRootIsShortAndStable(t *testing.T) {
	long := Config{Checkout: "/" + strings.Repeat("deep/", 40), Name: "demo"}
	root := Root(long)
	if root != Root(long) {
		t.Error("the root differs from call to call")
	}
	other := long
	other.Name = "up"
	if Root(other) == root {
		t.Error("two names have one root")
	}
	// The longest socket below it is a shim's: 64 hex digits.
	const room = 107
	if longest := filepath.Join(root, dirRun, "s", strings.Repeat("f", 64)); len(longest) > room {
		t.Errorf("path of a shim's socket has %d bytes, %d fit: %s", len(longest), room, longest)
	}
}

func TestLoadWithoutNode(t *testing.T) {
	if _, err := Load(t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("Load of an empty folder: %v, want ErrNotFound", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errdefs.IsDataLoss(err) {
		t.Errorf("Load of a broken record: %v, want ErrDataLoss", err)
	}
}

func TestUntilTellsTheLastReason(t *testing.T) {
	cause := errors.New("took too long")
	ctx, stop := context.WithCancelCause(t.Context())
	stop(cause)
	last := errors.New("not there yet")
	err := Until(ctx, "it is there", func(context.Context) error { return last })
	if !errors.Is(err, cause) || !errors.Is(err, last) || !strings.Contains(err.Error(), "it is there") {
		t.Errorf("error is %v", err)
	}
}

// An attempt that is killed by the deadline hides what the condition lacks.
func TestUntilTellsOfTheLastWholeAttempt(t *testing.T) {
	errWrong, errKilled := errors.New("wrong answer"), errors.New("killed")
	ctx, cancel := context.WithCancelCause(t.Context())
	errLate := errors.New("too late")
	attempts := 0
	err := Until(ctx, "it is right", func(context.Context) error {
		if attempts++; attempts == 1 {
			return errWrong
		}
		cancel(errLate)
		return errKilled
	})
	for _, want := range []error{errWrong, errKilled, errLate} {
		if !errors.Is(err, want) {
			t.Errorf("%v does not tell of %q", err, want)
		}
	}
	if err := Until(ctx, "it is right", func(context.Context) error { return errKilled }); err == nil || !strings.Contains(err.Error(), "none was completed") {
		t.Errorf("an only attempt that was cut short: %v", err)
	}
}
