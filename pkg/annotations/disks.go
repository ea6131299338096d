package annotations

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// Disk is an entry of the annotation disks: a new disk, which ends with its VM; a
// volume of the pod that is to be a disk; or a disk that the VM has anyway, of which
// the entry changes how it is used.
type Disk struct {
	// Name, Volume or, if both are empty, DevicePath say which of the three it is.
	Name   string
	Volume string
	// DevicePath is where the guest finds the disk; "/" is the root disk.
	DevicePath string

	Size       int64  // bytes; 0 for a disk that exists
	FileSystem string // that a new disk is given, "" for none
	MountPath  string // where the guest mounts it, "" for nowhere

	Bus     string // "" for the pod's disk-bus
	Cache   string // QEMU's cache mode, "" for the one that suits the disk
	IO      string // QEMU's way of asynchronous I/O, likewise
	Discard string // whether the node gets back what the guest frees, likewise
	Serial  string // "" for a derived one
}

// diskEntry is a Disk as people write it.
type diskEntry struct {
	Name       string             `json:"name"`
	Volume     string             `json:"volume"`
	DevicePath string             `json:"devicePath"`
	Size       *resource.Quantity `json:"size"`
	FileSystem string             `json:"fs"`
	MountPath  string             `json:"mountPath"`
	Bus        string             `json:"bus"`
	Cache      string             `json:"cache"`
	IO         string             `json:"io"`
	Discard    string             `json:"discard"`
	Serial     string             `json:"serial"`
}

const (
	diskForms = "a YAML list of disks, each with either `name` and `size`, or the `volume` of the pod that is to be one, or the `devicePath` of one " +
		"that the VM has anyway, and with any of `fs` (`ext4`), `mountPath`, `devicePath`, `bus` (`scsi`, `virtio`, `sata`), " +
		"`cache` (`none`, `writethrough`, `writeback`, `directsync`, `unsafe`), `io` (`threads`, `native`), `discard` (`unmap`, `ignore`) and `serial`"

	diskDoc = "Disks of the VM beside those that the pod's volumes give it, and how each disk is used.\n\n" +
		"An entry with a `name` makes a disk of `size` that ends with the VM (qcow2, so it takes what is written to it). " +
		"With `fs` it has a file system, which the guest mounts at `mountPath`; with `devicePath` the guest has a link to it there.\n\n" +
		"An entry with the `volume` name of an `emptyDir` makes that volume a disk of `size` in place of a shared folder, mounted where the container " +
		"mounts the volume. It lives as long as the pod does and kubelet counts it against `sizeLimit`.\n\n" +
		"An entry with only a `devicePath` means the disk that `volumeDevices` puts there, or the root disk (`/`); one with the `volume` name of a " +
		"`flexVolume` means its disk. Both can only say how the disk is used: `bus`, `cache`, `io`, `discard` and `serial`. " +
		"`io: native` needs `cache: none` or `directsync`. The serial number is what the guest shows in `/dev/disk/by-id`; a new disk's is its name.\n\n" +
		"```yaml\n" +
		"vm.ambipod.io/disks: |\n" +
		"  - {name: scratch, size: 20Gi, fs: ext4, mountPath: /scratch}\n" +
		"  - {name: swap, size: 2Gi, devicePath: /dev/swap, bus: virtio, cache: unsafe}\n" +
		"  - {volume: cache, size: 5Gi}\n" +
		"  - {devicePath: /dev/data, cache: none, io: native}\n" +
		"```"

	// minDiskSize holds the smallest file system that can be made.
	minDiskSize = 1 << 20
	// maxSerial is what a guest sees of a serial number by virtio-blk.
	maxSerial = 20
)

var (
	// A name is a file's and a serial number.
	diskName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	diskSerial = regexp.MustCompile(`^[A-Za-z0-9_.+-]+$`)
	// reservedSerials are those of the disks that every VM has.
	reservedSerials = []string{"root", "config"}
)

func parseDisks(value string) ([]Disk, error) {
	var entries []diskEntry
	if err := yaml.UnmarshalStrict([]byte(value), &entries); err != nil {
		return nil, fmt.Errorf("cannot be read (%s)", strings.Join(strings.Fields(err.Error()), " "))
	}
	var disks []Disk
	seen := map[string]bool{}
	for i, entry := range entries {
		disk, err := entry.disk()
		if err != nil {
			return nil, fmt.Errorf("is wrong in disk %d: %w", i+1, err)
		}
		for what, name := range map[string]string{"name": disk.Name, "volume": disk.Volume, "devicePath": disk.DevicePath, "serial": disk.Serial} {
			key := what + " " + name
			if name != "" && seen[key] {
				return nil, fmt.Errorf("has two disks with the %s", key)
			}
			seen[key] = true
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

func (e diskEntry) disk() (Disk, error) {
	disk := Disk{
		Name: e.Name, Volume: e.Volume, DevicePath: e.DevicePath, FileSystem: e.FileSystem, MountPath: e.MountPath,
		Bus: e.Bus, Cache: e.Cache, IO: e.IO, Discard: e.Discard, Serial: e.Serial,
	}
	for _, check := range []func(*diskEntry) error{(*diskEntry).checkKind, (*diskEntry).checkPaths, (*diskEntry).checkWords, (*diskEntry).checkSerial} {
		if err := check(&e); err != nil {
			return Disk{}, err
		}
	}
	if e.Size == nil {
		return disk, nil
	}
	if e.Size.CmpInt64(minDiskSize) < 0 || e.Size.CmpInt64(math.MaxInt64/2) > 0 {
		return Disk{}, fmt.Errorf("its size %s is not between 1Mi and 4Ei", e.Size)
	}
	disk.Size = e.Size.Value()
	return disk, nil
}

// checkKind: each kind of disk can only have what makes sense for it.
func (e *diskEntry) checkKind() error {
	switch {
	case e.Name != "" && e.Volume != "":
		return errors.New("it has a name and a volume")
	case e.Name == "" && e.Volume == "" && e.DevicePath == "":
		return errors.New("it has no name, volume or devicePath")
	case e.Name != "" && (!diskName.MatchString(e.Name) || len(e.Name) > maxSerial):
		return fmt.Errorf("its name %q is not of 1 to %d lower-case letters, digits and dashes", e.Name, maxSerial)
	case e.Name != "" && slices.Contains(reservedSerials, e.Name):
		return fmt.Errorf("the name %s is taken", e.Name)
	case e.Name != "" && e.Size == nil:
		return fmt.Errorf("disk %s has no size", e.Name)
	case e.Name == "" && e.MountPath != "":
		return fmt.Errorf("the mountPath %s is for new disks alone, volumes are mounted where the container mounts them", e.MountPath)
	case e.Name == "" && e.Volume == "" && (e.Size != nil || e.FileSystem != ""):
		return fmt.Errorf("the disk at %s exists and cannot be given a size or a file system", e.DevicePath)
	case e.MountPath != "" && e.FileSystem == "":
		return fmt.Errorf("it has nothing to mount at %s, because it has no fs", e.MountPath)
	case e.DevicePath == "/" && (e.Name != "" || e.Volume != ""):
		return errors.New("it cannot be the root disk")
	}
	return nil
}

func (e *diskEntry) checkPaths() error {
	for what, name := range map[string]string{"devicePath": e.DevicePath, "mountPath": e.MountPath} {
		if name != "" && (!path.IsAbs(name) || path.Clean(name) != name || strings.ContainsFunc(name, unicode.IsControl)) {
			return fmt.Errorf("its %s %q is not absolute and clean", what, name)
		}
	}
	if e.MountPath == "/" {
		return errors.New("its mountPath is the root directory")
	}
	return nil
}

// checkWords looks at the fields that have a fixed set of values.
func (e *diskEntry) checkWords() error {
	for _, word := range []struct {
		field, value string
		allowed      []string
	}{
		{"fs", e.FileSystem, []string{"ext4"}},
		{"bus", e.Bus, []string{busSCSI, busVirtio, busSATA}},
		{"cache", e.Cache, []string{"none", "writethrough", "writeback", "directsync", "unsafe"}},
		{"io", e.IO, []string{"threads", "native"}},
		{"discard", e.Discard, []string{"unmap", "ignore"}},
	} {
		if word.value != "" && !slices.Contains(word.allowed, word.value) {
			return fmt.Errorf("its %s %q is none of %s", word.field, word.value, strings.Join(word.allowed, ", "))
		}
	}
	// QEMU can use the kernel's own asynchronous I/O only past the page cache.
	if e.IO == "native" && e.Cache != "none" && e.Cache != "directsync" {
		return errors.New("its io native needs the cache none or directsync")
	}
	return nil
}

func (e *diskEntry) checkSerial() error {
	switch {
	case e.Serial == "":
		return nil
	case !diskSerial.MatchString(e.Serial) || len(e.Serial) > maxSerial:
		return fmt.Errorf("its serial %q is not of 1 to %d letters, digits, dots, pluses, dashes and underscores", e.Serial, maxSerial)
	case slices.Contains(reservedSerials, e.Serial):
		return fmt.Errorf("the serial %s is taken", e.Serial)
	}
	return nil
}
