package accel_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/accel"
)

func TestParseMode(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]accel.Mode{
		"": accel.ModeAuto, "auto": accel.ModeAuto, "kvm": accel.ModeKVM, "tcg": accel.ModeTCG,
	} {
		if got, err := accel.ParseMode(text); err != nil || got != want {
			t.Errorf("ParseMode(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"KVM", "hvf", " kvm"} {
		if got, err := accel.ParseMode(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParseMode(%q) = %q, %v; want ErrInvalidArgument", text, got, err)
		}
	}
	if _, err := accel.Probe(t.Context(), accel.Options{Mode: "hvf"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Probe with mode hvf: %v, want ErrInvalidArgument", err)
	}
}

func TestProbeWithoutKVM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(dir, "kvm")
	for name, test := range map[string]struct{ device, want string }{
		"absent":       {absent, absent + " is absent"},
		"other device": {"/dev/null", "/dev/null does not speak KVM's interface"},
		"a file":       {file, file + " does not speak KVM's interface"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			choice, err := accel.Probe(t.Context(), accel.Options{Device: test.device})
			if err != nil || choice.Accel != accel.TCG || !strings.Contains(choice.Reason, test.want) {
				t.Errorf("auto: %+v, %v; want tcg because %q", choice, err, test.want)
			}
			choice, err = accel.Probe(t.Context(), accel.Options{Device: test.device, Mode: accel.ModeKVM})
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("kvm: %+v, %v; want ErrFailedPrecondition because %q", choice, err, test.want)
			}
		})
	}
	choice, err := accel.Probe(t.Context(), accel.Options{Device: absent, Mode: accel.ModeTCG})
	if err != nil || choice.Accel != accel.TCG || choice.Reason == "" {
		t.Errorf("tcg: %+v, %v", choice, err)
	}
}
