package accel_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/accel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The program that is embedded must be the one that can be read.
func TestPayloadIsAssembled(t *testing.T) {
	t.Parallel()
	want := assemble(t.Context(), t, "payload.S", "--64", "elf_x86_64", "0x10000")
	if !bytes.Equal(want, accel.Payload) {
		built := filepath.Join(os.TempDir(), "payload.bin")
		t.Errorf("payload.bin is not what payload.S assembles to; build it by\n"+
			"as --64 -o %[1]s.o payload.S && ld -m elf_x86_64 -Ttext 0x10000 --oformat binary -o payload.bin %[1]s.o", built)
	}
}

func assemble(ctx context.Context, t *testing.T, source, flag, emulation, address string) []byte {
	t.Helper()
	dir := t.TempDir()
	object, binary := filepath.Join(dir, "object"), filepath.Join(dir, "binary")
	for _, argv := range [][]string{
		{"as", flag, "-o", object, source},
		{"ld", "-m", emulation, "-Ttext", address, "--oformat", "binary", "-o", binary, object},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v (install binutils): %s", argv, err, out)
		}
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
