package bootsector_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ambipod/ambipod/tests/bootsector"
)

func TestWriteDiskIsBootable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	if err := bootsector.WriteDisk(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(disk) != bootsector.Size || disk[510] != 0x55 || disk[511] != 0xaa {
		t.Errorf("%d bytes, signature %x; want %d and 55aa", len(disk), disk[510:512], bootsector.Size)
	}
	for i, b := range disk[512:] {
		if b != 0 {
			t.Fatalf("byte %d after the sector is %#x: the guest outgrew its sector", i, b)
		}
	}
}
