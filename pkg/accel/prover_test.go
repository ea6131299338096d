package accel

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scripted is a KVM that does what a test says. Without a kernel behind it, it
// knows no registers and so disables the feature that needs one.
func scripted(t *testing.T, enter func(step int, area *runArea) error) *prover {
	t.Helper()
	return &prover{newVM: func() (*vm, error) {
		// As a slice of words, to be aligned like the kernel's.
		words := make([]uint64, pageSize/8)
		v := &vm{kvm: -1, fd: -1, cpu: -1}
		v.shared = unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), pageSize)
		area := (*runArea)(unsafe.Pointer(&words[0]))
		step := 0
		v.enter = func() error {
			err := enter(step, area)
			step++
			return err
		}
		v.release = func() error { return nil }
		return v, nil
	}}
}

// report makes the exit that a letter from the payload causes.
func report(area *runArea, letter byte) {
	const place = 1024
	area.ExitReason, area.IOPort, area.IOSize, area.IOCount, area.IOOffset = exitIO, payloadPort, 1, 1, place
	*(*byte)(unsafe.Add(unsafe.Pointer(area), place)) = letter
}

const allParts = "CISPRTD"

func burn(d time.Duration) {
	start, _ := threadTime()
	for now := start; now-start < d; {
		now, _ = threadTime()
	}
}

func TestProve(t *testing.T) {
	t.Parallel()
	letters := func(step int, area *runArea) error { //nolint:unparam // others fail
		report(area, allParts[step])
		return nil
	}
	slowAt := func(part int, d time.Duration) func(int, *runArea) error {
		return func(step int, area *runArea) error {
			if step == part {
				burn(d)
			}
			return letters(step, area)
		}
	}
	exitAt := func(part int, reason uint32) func(int, *runArea) error {
		return func(step int, area *runArea) error {
			_ = letters(step, area)
			if step == part {
				area.ExitReason = reason
			}
			return nil
		}
	}
	for name, test := range map[string]struct {
		enter func(int, *runArea) error
		want  string // part of the reason; empty if KVM works
	}{
		"works":  {letters, ""},
		"crawls": {slowAt(0, 100*time.Millisecond), "calculations in a guest's kernel take"},
		"wrong result": {func(step int, area *runArea) error {
			_ = letters(step, area)
			if step == 2 {
				report(area, 'X')
			}
			return nil
		}, "system calls go wrong"},
		"unknown instruction": {exitAt(1, exitInternalError), "cannot execute a guest's interrupts (exit 17"},
		"no entry":            {exitAt(0, exitFailEntry), "cannot execute a guest's calculations (exit 9"},
		"triple fault":        {exitAt(3, exitShutdown), "crashes at its page faults"},
		"unknown exit":        {exitAt(3, 99), "for no good reason (exit 99)"},
		"other port": {func(_ int, area *runArea) error {
			report(area, 'C')
			area.IOPort = 0x80
			return nil
		}, "port 0x80"},
		"error of the kernel": {func(int, *runArea) error { return unix.EFAULT }, "bad address"},
		"crawls and fails": {func(step int, area *runArea) error {
			if step == 1 {
				return unix.EIO
			}
			return slowAt(0, 50*time.Millisecond)(step, area)
		}, "as natively, and then KVM fails to run a guest's interrupts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := scripted(t, test.enter).proveInBudget(t.Context())
			switch {
			case test.want == "" && (err != nil || found.summary == ""):
				t.Errorf("found %+v, %v; want no reason against it", found, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("found %+v, %v; want a reason with %q", found, err, test.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		m    measurement
		want string
	}{
		"at the limits":  {measurement{slowdown: maxSlowdown, trapCost: maxTrapCost}, ""},
		"slow":           {measurement{slowdown: 1944.3}, "calculations in a guest's kernel take 1944 times as long under KVM as natively"},
		"expensive":      {measurement{slowdown: 1, trapCost: 312}, "an interrupt, system call or page fault in a guest costs as much under KVM as 312 system calls natively"},
		"failure":        {measurement{failure: errors.New("KVM is odd")}, "KVM is odd"},
		"slow to failed": {measurement{slowdown: 50, failure: errors.New("KVM is odd")}, "calculations in a guest's kernel take 50 times as long under KVM as natively, and then KVM is odd"},
	} {
		got := ""
		if err := test.m.judge(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// One slow attempt may be bad luck, for example a machine that was suspended.
func TestProveTriesAgain(t *testing.T) {
	t.Parallel()
	first := true
	found, err := scripted(t, func(step int, area *runArea) error {
		if first {
			burn(100 * time.Millisecond)
			first = false
		}
		report(area, allParts[step])
		return nil
	}).proveInBudget(t.Context())
	if err != nil {
		t.Errorf("found %+v, %v; want the second attempt to count", found, err)
	}
}

// KVM_RUN that waits for ever returns after a signal, as pause(2) does.
func TestHungGuestIsInterrupted(t *testing.T) {
	t.Parallel()
	started := time.Now()
	_, err := scripted(t, func(step int, area *runArea) error {
		if step == 2 {
			return unix.Pause()
		}
		report(area, allParts[step])
		return nil
	}).proveInBudget(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not finish its system calls") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(started); took < budget {
		t.Errorf("gave up after %s, before its budget of %s", took, budget)
	}
}

func TestHungGuestThatIgnoresSignals(t *testing.T) {
	t.Parallel()
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	_, err := scripted(t, func(int, *runArea) error { <-never; return unix.EINTR }).proveInBudget(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot be interrupted") {
		t.Errorf("got %v", err)
	}
}

func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	started := time.Now()
	_, err := scripted(t, func(int, *runArea) error { return unix.Pause() }).proveInBudget(ctx)
	if err == nil || time.Since(started) > budget {
		t.Errorf("got %v after %s", err, time.Since(started))
	}
	_, err = Probe(ctx, Options{Device: "/dev/null"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Probe: %v, want the context's error", err)
	}
}

// The kernel's structures have the sizes that the numbers of the requests contain.
func TestLayoutOfStructures(t *testing.T) {
	t.Parallel()
	size := func(request uintptr) uintptr { return request >> 16 & 0x3fff }
	for name, test := range map[string]struct{ got, want uintptr }{
		"kvm_regs":                    {unsafe.Sizeof(cpuRegs{}), size(kvmSetRegs)},
		"kvm_sregs":                   {unsafe.Sizeof(systemRegs{}), size(kvmSetSregs)},
		"kvm_userspace_memory_region": {unsafe.Sizeof(memoryRegion{}), size(kvmSetUserMemoryRegion)},
		"kvm_cpuid2":                  {unsafe.Offsetof(cpuidTable{}.Entries), size(kvmSetCPUID2)},
		"kvm_cpuid_entry2":            {unsafe.Sizeof(cpuidEntry{}), 40},
		"kvm_msrs":                    {unsafe.Offsetof(oneMSR{}.Index), size(kvmSetMSRs)},
		"kvm_run.exit_reason":         {unsafe.Offsetof(runArea{}.ExitReason), 8},
		"kvm_run.io":                  {unsafe.Offsetof(runArea{}.IODirection), 32},
		"kvm_run.io.data_offset":      {unsafe.Offsetof(runArea{}.IOOffset), 40},
	} {
		if test.got != test.want {
			t.Errorf("%s is at or of %d, want %d", name, test.got, test.want)
		}
	}
}
