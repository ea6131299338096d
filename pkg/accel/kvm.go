package accel

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of KVM's interface, from linux/kvm.h for x86-64.
const (
	kvmGetAPIVersion       = 0xAE00
	kvmCreateVM            = 0xAE01
	kvmGetVCPUMmapSize     = 0xAE04
	kvmGetSupportedCPUID   = 0xC008AE05
	kvmCreateVCPU          = 0xAE41
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmSetTSSAddr          = 0xAE47
	kvmCreateIRQChip       = 0xAE60
	kvmRun                 = 0xAE80
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84
	kvmGetMSRs             = 0xC008AE88
	kvmSetMSRs             = 0x4008AE89
	kvmSetCPUID2           = 0x4008AE90
)

// apiVersion is the only one there has been since Linux 2.6.22.
const apiVersion = 12

// tssAddress is three pages below 4 GiB for Intel's real mode, where QEMU has them.
const tssAddress = 0xfffbd000

// Reasons for which KVM_RUN returns.
const (
	exitIO            = 2
	exitShutdown      = 8
	exitFailEntry     = 9
	exitInternalError = 17
)

// cpuRegs is struct kvm_regs.
type cpuRegs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFlags                            uint64
}

// segment is struct kvm_segment.
type segment struct {
	Base                            uint64
	Limit                           uint32
	Selector                        uint16
	Type, Present, DPL, DB, S, L, G uint8
	AVL, Unusable, _                uint8
}

// descriptorTable is struct kvm_dtable.
type descriptorTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// systemRegs is struct kvm_sregs.
type systemRegs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT segment
	GDT, IDT                        descriptorTable
	CR0, CR2, CR3, CR4, CR8         uint64
	EFER, APICBase                  uint64
	Interrupts                      [4]uint64
}

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	Slot, Flags   uint32
	Guest, Length uint64
	Host          uint64
}

// cpuidEntry is struct kvm_cpuid_entry2.
type cpuidEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// cpuidTable is struct kvm_cpuid2 with room for what any CPU has.
type cpuidTable struct {
	Count, _ uint32
	Entries  [256]cpuidEntry
}

// oneMSR is struct kvm_msrs with one entry.
type oneMSR struct {
	Count, _ uint32
	Index, _ uint32
	Value    uint64
}

// runArea is the beginning of struct kvm_run, which the kernel shares with us, up
// to the variant for exitIO.
type runArea struct {
	RequestInterruptWindow uint8
	ImmediateExit          uint8
	_                      [6]uint8
	ExitReason             uint32
	ReadyForInterrupt      uint8
	IF                     uint8
	Flags                  uint16
	CR8, APICBase          uint64
	IODirection, IOSize    uint8
	IOPort                 uint16
	IOCount                uint32
	IOOffset               uint64
}

// suberror is where the variants for exitInternalError and exitFailEntry begin.
func (r *runArea) suberror() uint64 {
	return uint64(r.IODirection) | uint64(r.IOSize)<<8 | uint64(r.IOPort)<<16
}

// ioctl makes a request whose argument is a number.
func ioctl(fd int, request, argument uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ioctlWith makes a request about a structure.
func ioctlWith[T any](fd int, request uintptr, about *T) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(about))) //nolint:gosec // used within the call
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// openKVM opens the device; the error says what is wrong in words.
func openKVM(device string) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, fmt.Errorf("%s is absent", device)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("%s has no driver behind it", device)
	case err != nil:
		return -1, fmt.Errorf("%s cannot be opened (%w)", device, err)
	}
	version, err := ioctl(fd, kvmGetAPIVersion, 0)
	if err == nil && version != apiVersion {
		err = fmt.Errorf("version %d instead of %d", version, apiVersion)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s does not speak KVM's interface (%w)", device, err)
	}
	return fd, nil
}
