//go:build integration

package libvirttools_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/bootsector"
)

// TestManyDisks: QEMU itself, and not only the XML, takes the root disk, the
// cloud-init disk and 24 more on either bus, with every way to use them.
func TestManyDisks(t *testing.T) {
	modes := []libvirttools.Disk{
		{},
		{Ephemeral: true},
		{Cache: libvirttools.CacheNone, IO: libvirttools.IONative},
		{Cache: libvirttools.CacheDirectSync, IO: libvirttools.IOThreads},
		{Cache: libvirttools.CacheWriteThrough, Discard: libvirttools.DiscardIgnore},
		{Cache: libvirttools.CacheWriteBack, ReadOnly: true},
		{Cache: libvirttools.CacheUnsafe, Discard: libvirttools.DiscardUnmap},
	}
	for _, bus := range []string{libvirttools.BusSCSI, libvirttools.BusVirtio} {
		t.Run(bus, func(t *testing.T) {
			c, g := client(t), describeGuest(t)
			g.Disks[0].Bus, g.Disks[0].Serial = bus, "root"
			const count = 24
			for i := range count {
				disk := modes[i%len(modes)]
				disk.Path, disk.Format = filepath.Join(filepath.Dir(g.base), fmt.Sprintf("data%d", i)), libvirttools.FormatRaw
				disk.Bus, disk.Serial = bus, fmt.Sprintf("serial-%d", i)
				if err := os.WriteFile(disk.Path, make([]byte, 1<<20), 0o600); err != nil {
					t.Fatal(err)
				}
				g.Disks = append(g.Disks, disk)
			}
			define(t, c, g)
			g.boot(t, c)
			frontends := map[string]string{libvirttools.BusSCSI: "scsi-hd", libvirttools.BusVirtio: "virtio-blk-pci"}
			if got := len(devicesOf(t, g, frontends[bus])); got != count+1 {
				t.Errorf("QEMU has %d disks on bus %s, want %d", got, bus, count+1)
			}
			checkUses(t, g)
		})
	}
}

// devicesOf lists the serial numbers of QEMU's devices of one kind.
func devicesOf(t *testing.T, g *guest, kind string) []string {
	t.Helper()
	var serials []string
	for _, arg := range arguments(t, g) {
		var device struct{ Driver, Serial string }
		if json.Unmarshal([]byte(arg), &device) == nil && device.Driver == kind && !slices.Contains(serials, device.Serial) {
			serials = append(serials, device.Serial)
		}
	}
	return serials
}

// use is how QEMU uses a disk.
type use struct {
	Direct, NoFlush, ReadOnly bool
	AIO, Discard, WriteCache  string
}

// uses reads QEMU's command line, where a disk is a file with its cache, the format of
// what is in it, and the device that the guest sees.
func uses(t *testing.T, g *guest) map[string]use {
	t.Helper()
	type part struct {
		Name       string `json:"node-name"`
		Filename   string `json:"filename"`
		AIO        string `json:"aio"`
		File       string `json:"file"`
		Discard    string `json:"discard"`
		ReadOnly   bool   `json:"read-only"`
		Drive      string `json:"drive"`
		WriteCache string `json:"write-cache"`
		Cache      struct {
			Direct  bool `json:"direct"`
			NoFlush bool `json:"no-flush"`
		} `json:"cache"`
	}
	var files []part
	formats, devices := map[string]part{}, map[string]part{}
	for _, arg := range arguments(t, g) {
		var p part
		switch err := json.Unmarshal([]byte(arg), &p); {
		case err != nil:
		case p.Filename != "":
			files = append(files, p)
		case p.File != "":
			formats[p.File] = p
		case p.Drive != "":
			devices[p.Drive] = p
		}
	}
	found := map[string]use{}
	for _, file := range files {
		format := formats[file.Name]
		found[filepath.Base(file.Filename)] = use{
			file.Cache.Direct, file.Cache.NoFlush, format.ReadOnly, file.AIO, format.Discard, devices[format.Name].WriteCache,
		}
	}
	return found
}

// checkUses compares what QEMU was told about disks with what was asked for.
func checkUses(t *testing.T, g *guest) {
	t.Helper()
	found := uses(t, g)
	for name, want := range map[string]use{
		"data1": {NoFlush: true, WriteCache: "on", Discard: "unmap"},
		"data2": {Direct: true, AIO: "native", WriteCache: "on", Discard: "unmap"},
		"data3": {Direct: true, AIO: "threads", WriteCache: "off", Discard: "unmap"},
		"data4": {WriteCache: "off", Discard: "ignore"},
		"data5": {ReadOnly: true, WriteCache: "on"},
		"data6": {NoFlush: true, WriteCache: "on", Discard: "unmap"},
	} {
		if diff := cmp.Diff(want, found[name]); diff != "" {
			t.Errorf("QEMU was told of disk %s (-want +got):\n%s", name, diff)
		}
	}
}

// arguments is QEMU's command line.
func arguments(t *testing.T, g *guest) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", g.process(t).PID))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\x00")
}

// TestHandedDisk: QEMU reads and writes a disk in a folder that is closed to its user.
func TestHandedDisk(t *testing.T) {
	c, g := client(t), describeGuest(t)
	closed := filepath.Join(filepath.Dir(g.base), "closed")
	disk := filepath.Join(closed, "disk.raw")
	if err := errors.Join(os.Mkdir(closed, 0o700), os.Rename(g.base, disk), os.Chmod(disk, 0o600)); err != nil {
		t.Fatal(err)
	}
	g.Disks[0] = libvirttools.Disk{Path: disk, Format: libvirttools.FormatRaw, Handed: "boot", Cache: libvirttools.CacheNone}
	define(t, c, g)
	if err := c.Start(deadline(t), g.UUID); err == nil {
		t.Error("the guest started without the disk that it must be given")
	}
	for attempt := range 2 { // a disk can be handed over again
		file, err := os.OpenFile(disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := strings.Count(g.console(t), bootsector.Ready)
		if err := c.Start(deadline(t), g.UUID, libvirttools.OpenDisk{Name: "boot", File: file}); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "the guest to boot from its disk", func() bool {
			return strings.Count(g.console(t), bootsector.Ready) > before
		})
		confined(t, g)
		wrote := strings.Count(g.console(t), "WROTE")
		g.tell(t, bootsector.Write)
		eventually(t, "the guest to write to its disk", func() bool { return strings.Count(g.console(t), "WROTE") > wrote })
		if err := c.Destroy(deadline(t), g.UUID); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(disk)
		if err != nil || bytes.Count(content[512:1024], []byte{0}) == 512 {
			t.Errorf("attempt %d: nothing arrived on the disk: %v", attempt, err)
		}
		var stat unix.Stat_t
		if err := unix.Stat(disk, &stat); err != nil || stat.Uid != 0 || stat.Mode&0o777 != 0o600 {
			t.Errorf("the disk belongs to %d with mode %o: %v", stat.Uid, stat.Mode, err)
		}
		if err := os.Truncate(disk, 512); err != nil { // what the next attempt must write
			t.Fatal(err)
		}
		if err := os.Truncate(disk, bootsector.Size); err != nil {
			t.Fatal(err)
		}
	}
}

// confined checks that QEMU is not root and has its seccomp filter on.
func confined(t *testing.T, g *guest) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.process(t).PID))
	if err != nil {
		t.Fatal(err)
	}
	status := string(text)
	if !strings.Contains(status, "Seccomp:\t2\n") || !strings.Contains(status, "CapEff:\t0000000000000000\n") || strings.Contains(status, "Uid:\t0\t") {
		t.Errorf("QEMU runs without a filter, with capabilities or as root:\n%s", status)
	}
}

// TestFoldersBy9P: QEMU, as its own user, takes folders that it serves itself.
func TestFoldersBy9P(t *testing.T) {
	c, g := client(t), describeGuest(t)
	for i, readOnly := range []bool{false, true} {
		folder := filepath.Join(filepath.Dir(g.base), fmt.Sprintf("folder,%d", i))
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		g.Shares = append(g.Shares, libvirttools.Share{Tag: fmt.Sprintf("volume%d", i), Folder: folder, ReadOnly: readOnly})
	}
	define(t, c, g)
	g.boot(t, c)
	line := strings.Join(arguments(t, g), "\n")
	for i, share := range g.Shares {
		var served string
		for _, arg := range arguments(t, g) {
			if strings.HasPrefix(arg, "local,") && strings.Contains(arg, strings.ReplaceAll(share.Folder, ",", ",,")) {
				served = arg
			}
		}
		if !strings.Contains(served, "security_model=none") || strings.Contains(served, "readonly") != share.ReadOnly {
			t.Errorf("folder %d is served as %q in\n%s", i, served, line)
		}
	}
}
