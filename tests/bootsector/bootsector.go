// Package bootsector makes disks that boot the smallest possible guest, for tests
// of everything around a guest: 512 bytes that say READY on the serial port a
// second after power-on, obey the ACPI power button and a few one-letter commands.
// guest.S lists them.
//
// The sector is assembled when it is needed, by the assembler that any cgo build
// needs, so that what runs is what the source says.
package bootsector

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Size is the length in bytes of a disk that WriteDisk makes.
const Size = 1 << 20

// Ready is what the guest says when it has booted.
const Ready = "READY"

// Commands are letters that the guest obeys.
const (
	PowerOff    = "p"
	Reset       = "r"
	TripleFault = "t"
	Panic       = "k" // by the ISA panic device
	Write       = "w" // to the second sector; answers "WROTE"
	Halt        = "h" // deaf to everything after its echo
	Flood       = "f" // "FLOOD FLOOD …" without end
)

//go:embed guest.S
var source string

// WriteDisk makes a raw disk image at path that boots the guest.
func WriteDisk(ctx context.Context, path string) error {
	sector, err := assemble(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, sector, 0o644); err != nil { //nolint:gosec // QEMU's user reads it
		return fmt.Errorf("write boot disk: %w", err)
	}
	if err := os.Truncate(path, Size); err != nil {
		return fmt.Errorf("write boot disk: %w", err)
	}
	return nil
}

func assemble(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "bootsector")
	if err != nil {
		return nil, fmt.Errorf("assemble boot sector: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	object, binary := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	if err := run(ctx, source, "as", "--32", "-o", object, "-"); err != nil {
		return nil, err
	}
	if err := run(ctx, "", "ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", binary, object); err != nil {
		return nil, err
	}
	sector, err := os.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("assemble boot sector: %w", err)
	}
	return sector, nil
}

func run(ctx context.Context, stdin, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("assemble boot sector by %s (install binutils): %w: %s", program, err, out)
	}
	return nil
}
