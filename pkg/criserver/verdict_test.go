package criserver

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

func TestJudge(t *testing.T) {
	started := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	logged := time.Date(2026, 11, 21, 10, 2, 43, 755e6, time.UTC)
	const said = "2026-11-21T10:02:43.1Z qemu-system-x86_64: cannot allocate memory\n"
	finish := func(why string) string { return "2026-11-21 10:02:43.755+0000: shutting down, reason=" + why + "\n" }
	for _, test := range []struct {
		name            string
		remembered      libvirttools.Reason
		log, console    string
		panicked        bool
		code            int32
		reason, message string
		at              time.Time // zero: now
	}{
		{name: "guest powers off", remembered: libvirttools.ReasonShutdown, log: finish("shutdown"), reason: "Completed", at: logged},
		{name: "libvirtd forgot that", remembered: libvirttools.ReasonUnknown, log: finish("shutdown"), reason: "Completed", at: logged},
		{name: "domain is gone", log: finish("shutdown"), reason: "Completed", at: logged},
		{name: "switched off", remembered: libvirttools.ReasonDestroyed, code: 137, reason: "Error", message: "the VM was switched off"},
		{
			name: "QEMU dies", remembered: libvirttools.ReasonCrashed, log: said + finish("crashed"), at: logged,
			code: 134, reason: "Error", message: "QEMU died or was killed, its last words: qemu-system-x86_64: cannot allocate memory",
		},
		{
			name: "kernel panics", remembered: libvirttools.ReasonCrashed, log: said + finish("crashed"), panicked: true, at: logged,
			console: "login:\r\n[ 9.1] Kernel panic - not syncing: sysrq\x1b[1m triggered crash\r\n[ 9.2] CPU: 0\r\n",
			code:    134, reason: "GuestPanicked", message: "the guest's kernel panicked: Kernel panic - not syncing: sysrq [1m triggered crash",
		},
		{name: "silent panic", remembered: libvirttools.ReasonCrashed, panicked: true, code: 134, reason: "GuestPanicked", message: "the guest's kernel panicked"},
		{name: "nobody knows", code: 255, reason: "Error", message: `the VM ended while nobody looked; libvirt gives the reason "unknown"`},
		{name: "a log that is not this run's", remembered: libvirttools.ReasonShutdown, log: strings.ReplaceAll(finish("shutdown"), "10:02", "09:02"), reason: "Completed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := &Server{Options: Options{Layout: layout.Layout{State: dir, Run: dir}, DomainLogs: dir, Logger: slog.New(slog.DiscardHandler)}}
			vm := container{
				metadata.Container{ID: strings.Repeat("c", 64), StartedAt: started, Panicked: test.panicked},
				&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "machine"}},
			}
			write(t, s.domainLog(vm), test.log)
			write(t, s.Layout.VM(vm.ID).ConsoleLog(), test.console)
			before := time.Now()
			got := s.judge(t.Context(), vm, libvirttools.State{Phase: libvirttools.PhaseShutOff, Reason: test.remembered})
			if got.code != test.code || got.reason != test.reason || got.message != test.message {
				t.Errorf("%d %s %q, want %d %s %q", got.code, got.reason, got.message, test.code, test.reason, test.message)
			}
			if test.at.IsZero() && got.at.Before(before) || !test.at.IsZero() && !got.at.Equal(test.at) {
				t.Errorf("it ended at %s, want %s (zero: now)", got.at, test.at)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if text == "" {
		return
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPodGroupsAreRecognised(t *testing.T) {
	const uid = "0f3c-77"
	for _, test := range []struct {
		group string
		want  bool
	}{
		{"/kubepods/burstable/pod0f3c-77", true},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f3c_77.slice", true},
		{"/kubepods/burstable/pod0f3c-78", false},
		{"/ambipod", false},
		{"/", false},
	} {
		if got := isOfPod(test.group, uid); got != test.want {
			t.Errorf("%s: %t", test.group, got)
		}
	}
	if isOfPod("/kubepods/pod", "") {
		t.Error("a pod without UID has a group")
	}
}
