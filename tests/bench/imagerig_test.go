package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTurnsLetBothSidesBeFirst(t *testing.T) {
	var order strings.Builder
	side := func(name string, takes time.Duration) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			order.WriteString(name)
			return takes, nil
		}
	}
	took, err := turns(4, side("b", 2), side("o", 3))
	if err != nil {
		t.Fatal(err)
	}
	if want := [][]time.Duration{{2, 2, 2, 2}, {3, 3, 3, 3}}; !cmp.Equal(took, want) || order.String() != "boobobbo" {
		t.Errorf("got %v in the order %s", took, order.String())
	}
	broken := errors.New("broken")
	if _, err := turns(3, side("b", 2), func() (time.Duration, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestFastestTurnsAreCompared(t *testing.T) {
	p := pair{base: []time.Duration{8e6, 4e6, 9e6}, ours: []time.Duration{5e6, 8e6, 6e6}}
	got := ratioRow("x", p.at(fastest), 1.15)
	if got.Base != "4.00 ms" || got.Ours != "5.00 ms" || got.Ratio != "1.25×" || *got.Met {
		t.Errorf("got %+v", got)
	}
}

func TestTimeRowShowsItsQuantile(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(i+1)*time.Millisecond)
	}
	got := timeRow("x", took, 0.99, 50)
	if got.Ours != "99.0 ms" || got.Spread != "median 50.0 ms" || *got.Met || got.Samples != 100 {
		t.Errorf("got %+v", got)
	}
}

func TestSystemDiskIsFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := writeSystemDisk(path, 8<<20); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(path)
	if err != nil || len(disk) != 8<<20 || disk[510] != 0x55 || disk[511] != 0xaa {
		t.Errorf("%d bytes, %v; want a bootable disk of 8 MiB", len(disk), err)
	}
}
