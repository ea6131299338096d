//go:build integration

package accel_test

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/accel"
)

// The payload must be right before it may call a KVM wrong: here it runs, with the
// same page tables and descriptors, on a CPU that is known to work, QEMU's TCG.
func TestPayloadOnWorkingCPU(t *testing.T) {
	t.Parallel()
	if got := bootPayload(t, func([]byte) {}); got != "CISPRTD" {
		t.Errorf("the payload reports %q, want all its parts: CISPRTD", got)
	}
}

// And it must notice what is wrong.
func TestPayloadNoticesWrongResults(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(memory []byte)
		want  string
	}{
		"result of the arithmetic": {func(m []byte) { m[accel.AddrResult]++ }, "X"},
		"interrupt that goes astray": {func(m []byte) {
			const idt, vector = 0x15000, 0x40
			binary.LittleEndian.PutUint16(m[idt+16*vector:], 0x4a0) // only returns
		}, "CX"},
		"address space with the same page": {func(m []byte) {
			const tableB, page = 0x23000, 0x1ff
			binary.LittleEndian.PutUint64(m[tableB+8*page:], page<<12|7)
		}, "CISPX"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := bootPayload(t, test.spoil); got != test.want {
				t.Errorf("the payload reports %q, want %q", got, test.want)
			}
		})
	}
}

// bootPayload runs the payload under TCG and returns its letters.
func bootPayload(t *testing.T, spoil func(memory []byte)) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return runPayload(ctx, t, "tcg", spoil)
}

// runPayload boots the payload in QEMU and returns its letters when it has come to
// an end, QEMU has, or ctx has.
func runPayload(ctx context.Context, t *testing.T, accelerator string, spoil func(memory []byte)) string {
	t.Helper()
	memory := make([]byte, accel.MemorySize)
	accel.Fill(memory)
	spoil(memory)
	dir := t.TempDir()
	disk, log := filepath.Join(dir, "disk"), filepath.Join(dir, "log")
	loader := assemble(ctx, t, "testdata/loader.S", "--32", "elf_i386", "0x7c00")
	image := append(loader, memory[accel.AddrCode:accel.AddrEnd]...)
	if err := os.WriteFile(disk, append(image, make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", accelerator, "-machine", "pc", "-m", "16",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-drive", "if=ide,format=raw,file="+disk,
		"-chardev", "file,id=port,path="+log, "-device", "isa-debugcon,iobase=0xf4,chardev=port")
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install qemu-system-x86", err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	defer func() { cancel(); <-ended }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		letters, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if n := len(letters); n > 0 && (letters[n-1] == 'D' || letters[n-1] == 'X') {
			return string(letters)
		}
		select {
		case <-ended:
			return string(letters)
		case <-tick.C:
		}
	}
}
