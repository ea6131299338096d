// Package accel decides how VMs execute: with KVM, or in software by QEMU's TCG.
//
// A /dev/kvm that exists and opens proves nothing: some of them stand before a KVM
// that interprets each instruction of a guest's kernel, a thousand times slower
// than TCG translates it, or that knows only part of them. Probe therefore lets a
// guest of its own do, through KVM's bare ioctls, what each operating system does:
// compute, take interrupts, system calls and page faults, write model-specific
// registers, switch address spaces, sleep until a timer fires. The guest checks
// every result; Probe compares the time with what this very thread needs natively
// for equal or similar work.
//
// Nouns. The payload is the guest's program (payload.S, assembled in payload.bin);
// a part is a step of it that ends with a letter on an I/O port; the Choice is the
// answer, with its reason in words for Status and the log.
//
// Concurrency: Probe may be called from anywhere, any number of times. It needs
// about 2 MiB of memory and a few milliseconds where KVM works.
//
// Traps. Time is the thread's CPU time, so that a busy machine does not make KVM
// look slow; the limits are generous all the same (maxSlowdown, maxTrapCost). A
// KVM_RUN that hangs is interrupted by SIGURG, which Go's runtime ignores; one
// that ignores even signals costs this process a thread, and Probe says so.
package accel
