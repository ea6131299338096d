//go:build integration

package accel_test

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/accel"
)

// What Probe says of this machine must be what QEMU finds when it runs the same
// guest with KVM, on whatever machine this test runs.
func TestProbeAgreesWithQEMU(t *testing.T) {
	started := time.Now()
	choice, err := accel.Probe(t.Context(), accel.Options{})
	took := time.Since(started)
	if err != nil {
		t.Fatal(err)
	}
	if took > 5*time.Second {
		t.Errorf("Probe took %s", took)
	}
	t.Logf("in %s: %+v", took, choice)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	letters := runPayload(ctx, t, "kvm", func([]byte) {})
	if works := letters == "CISPRTD"; works != (choice.Accel == accel.KVM) {
		t.Errorf("Probe: %+v, but with KVM the guest reports %q to QEMU", choice, letters)
	}
}

func TestMayOpen(t *testing.T) {
	qemu, err := user.Lookup("libvirt-qemu")
	if err != nil {
		t.Fatalf("%v: install libvirt-daemon-system", err)
	}
	uid, gid := number(t, qemu.Uid), number(t, qemu.Gid)
	groups, err := qemu.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	var supplementary int
	for _, id := range groups {
		if id != qemu.Gid {
			supplementary = int(number(t, id))
		}
	}
	if supplementary == 0 {
		t.Fatalf("user libvirt-qemu is in no group but its own: %v; install libvirt-daemon-system", groups)
	}
	dir, err := os.MkdirTemp("/var/tmp", "accel") //nolint:usetesting // others may pass
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		owner, group int
		mode         os.FileMode
		allowed      bool
	}{
		"root's":              {0, 0, 0o600, false},
		"readable only":       {0, 0, 0o644, false},
		"everybody's":         {0, 0, 0o666, true},
		"own":                 {int(uid), 0, 0o600, true},
		"main group's":        {0, int(gid), 0o660, true},
		"supplementary group": {0, supplementary, 0o660, true},
		"own, but not to it":  {int(uid), 0, 0o066, false},
	} {
		t.Run(name, func(t *testing.T) {
			device := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(device, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(device, test.owner, test.group); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(device, test.mode); err != nil {
				t.Fatal(err)
			}
			err := accel.MayOpen(device, accel.User{UID: uid, GID: gid})
			if (err == nil) != test.allowed {
				t.Errorf("got %v, want allowed = %v", err, test.allowed)
			}
			if err != nil && (!strings.Contains(err.Error(), "libvirt-qemu") || !strings.Contains(err.Error(), device)) {
				t.Errorf("%v names neither the user nor the device", err)
			}
		})
	}
	stillRoot(t, filepath.Join(dir, "root's"))
}

// stillRoot sees to it that no thread has kept the identity of the user.
func stillRoot(t *testing.T, file string) {
	t.Helper()
	var readers sync.WaitGroup
	for range 64 {
		readers.Go(func() {
			if _, err := os.ReadFile(file); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	// The thread ends after its last goroutine has; a busy machine takes its time.
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		status := otherIdentity(t)
		if status == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a thread is not root's:\n%s", status)
		}
	}
}

// otherIdentity returns the status of a thread that is not root's, "" if all are.
func otherIdentity(t *testing.T) string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err == nil && !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
			return string(status)
		}
	}
	return ""
}

func number(t *testing.T, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}
