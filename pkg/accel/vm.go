package accel

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// payloadPort is where the payload reports.
const payloadPort = 0xf4

// parts are the letters of the payload's parts in their order, with words for them, in the plural.
var parts = []struct {
	letter byte
	name   string
}{
	{'C', "calculations"},
	{'I', "interrupts"},
	{'S', "system calls"},
	{'P', "page faults"},
	{'R', "switches of the address space"},
	{'T', "timer interrupts"},
	{'D', "last instructions"},
}

// vm is a virtual machine with one CPU and the payload in its memory.
type vm struct {
	kvm, fd, cpu int // descriptors; -1 while not open
	memory       []byte
	shared       []byte // struct kvm_run and what follows it
	cpuid        cpuidTable
	// enter runs the guest until it leaves or a signal arrives; tests replace it.
	enter func() error
	// release frees what the machine holds; likewise.
	release func() error

	thread  atomic.Int64 // that is in KVM_RUN, to kick
	stopped atomic.Bool
}

// newVM makes a virtual machine on an open /dev/kvm, which it does not own. The
// errors name the step that KVM refused.
func newVM(kvm int, w work) (*vm, error) {
	v := &vm{kvm: kvm, fd: -1, cpu: -1}
	v.enter = func() error { _, err := ioctl(v.cpu, kvmRun, 0); return err }
	v.release = v.close
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"a virtual machine", v.create},
		{"memory", func() error { return v.addMemory(w) }},
		{"an interrupt controller", func() error { _, err := ioctl(v.fd, kvmCreateIRQChip, 0); return err }},
		{"a CPU", v.addCPU},
		{"features of the CPU", v.setFeatures},
		{"long mode", v.setMode},
	} {
		if err := step.do(); err != nil {
			return nil, errors.Join(fmt.Errorf("KVM refuses %s (%w)", step.name, err), v.close())
		}
	}
	return v, nil
}

func (v *vm) create() (err error) {
	if v.fd, err = ioctl(v.kvm, kvmCreateVM, 0); err != nil {
		v.fd = -1
		return err
	}
	_, err = ioctl(v.fd, kvmSetTSSAddr, tssAddress)
	return err
}

func (v *vm) addMemory(w work) (err error) {
	v.memory, err = unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	fill(v.memory, w)
	host := unsafe.Pointer(&v.memory[0]) //nolint:gosec // a mapping, which nobody moves
	_, err = ioctlWith(v.fd, kvmSetUserMemoryRegion, &memoryRegion{Length: memorySize, Host: uint64(uintptr(host))})
	return err
}

func (v *vm) addCPU() (err error) {
	if v.cpu, err = ioctl(v.fd, kvmCreateVCPU, 0); err != nil {
		v.cpu = -1
		return err
	}
	size, err := ioctl(v.kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return err
	}
	v.shared, err = unix.Mmap(v.cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

// setFeatures gives the guest all that KVM says it can have, as "-cpu host" does.
func (v *vm) setFeatures() error {
	v.cpuid.Count = uint32(len(v.cpuid.Entries))
	if _, err := ioctlWith(v.kvm, kvmGetSupportedCPUID, &v.cpuid); err != nil {
		return err
	}
	_, err := ioctlWith(v.cpu, kvmSetCPUID2, &v.cpuid)
	return err
}

func (v *vm) setMode() error {
	var s systemRegs
	if _, err := ioctlWith(v.cpu, kvmGetSregs, &s); err != nil {
		return err
	}
	setRegisters(&s)
	if _, err := ioctlWith(v.cpu, kvmSetSregs, &s); err != nil {
		return err
	}
	_, err := ioctlWith(v.cpu, kvmSetRegs, &cpuRegs{RIP: addrCode, RSP: addrStack, RFlags: rflags})
	return err
}

// run executes the payload on the calling thread, to which the goroutine must be
// locked, and returns the CPU time of each part that it finished.
func (v *vm) run() (map[byte]time.Duration, error) {
	v.thread.Store(int64(unix.Gettid()))
	defer v.thread.Store(0)
	times := make(map[byte]time.Duration)
	for _, part := range parts {
		before, err := threadTime()
		if err != nil {
			return times, err
		}
		letter, err := v.nextLetter(part.name)
		if err != nil {
			return times, err
		}
		after, err := threadTime()
		if err != nil {
			return times, err
		}
		if letter != part.letter {
			return times, fmt.Errorf("a guest's %s go wrong under KVM", part.name)
		}
		times[letter] = after - before
	}
	return times, nil
}

// nextLetter lets the guest run until it reports; the errors say what it was about
// to do.
func (v *vm) nextLetter(doing string) (byte, error) {
	area := (*runArea)(unsafe.Pointer(&v.shared[0])) //nolint:gosec // the kernel lays it out so
	for {
		err := v.enter()
		switch {
		case v.stopped.Load():
			return 0, fmt.Errorf("a guest under KVM does not finish its %s in %s", doing, budget)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // a signal of Go's runtime
		case err != nil:
			return 0, fmt.Errorf("KVM fails to run a guest's %s (%w)", doing, err)
		}
		switch area.ExitReason {
		case exitIO:
			if area.IOPort == payloadPort && area.IOOffset < uint64(len(v.shared)) {
				return v.shared[area.IOOffset], nil
			}
			return 0, fmt.Errorf("KVM reports an access to port %#x that a guest's %s do not make", area.IOPort, doing)
		case exitInternalError, exitFailEntry:
			return 0, fmt.Errorf("KVM cannot execute a guest's %s (exit %d, error %d)", doing, area.ExitReason, area.suberror())
		case exitShutdown:
			return 0, fmt.Errorf("a guest under KVM crashes at its %s", doing)
		default:
			return 0, fmt.Errorf("KVM leaves a guest at its %s for no good reason (exit %d)", doing, area.ExitReason)
		}
	}
}

// unsettableFeatures lists CPU features that KVM offers, but whose registers it does
// not let QEMU set: QEMU passes them on with "-cpu host" and aborts. KVM itself is
// fine; it was seen on AMD, which has no such register, with several kernels. To be
// asked before the first run, after which KVM lets no such register change.
func (v *vm) unsettableFeatures() []string {
	const archCapabilities = 0x10a
	reported := oneMSR{Count: 1, Index: archCapabilities}
	if n, err := ioctlWith(v.kvm, kvmGetMSRs, &reported); err != nil || n != 1 {
		return nil // KVM does not know it, so QEMU does not set it
	}
	// Bits that QEMU does not know it does not set, so only the oldest are tried.
	reported.Value &= 0xff
	if n, err := ioctlWith(v.cpu, kvmSetMSRs, &reported); err == nil && n == 1 {
		return nil
	}
	return []string{"arch-capabilities"}
}

// kick makes run return, if KVM reacts at all; repeat it until run has.
func (v *vm) kick() {
	v.stopped.Store(true)
	if thread := v.thread.Load(); thread != 0 {
		// Go's runtime uses SIGURG for itself and ignores those of others.
		_ = unix.Tgkill(unix.Getpid(), int(thread), unix.SIGURG)
	}
}

func (v *vm) close() error {
	var errs []error
	for _, mapping := range [][]byte{v.shared, v.memory} {
		if mapping != nil {
			errs = append(errs, unix.Munmap(mapping))
		}
	}
	for _, fd := range []int{v.cpu, v.fd} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// threadTime is the CPU time of the calling thread, its guests' included.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
