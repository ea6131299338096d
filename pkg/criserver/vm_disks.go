package criserver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/volumes"
	"github.com/ambipod/ambipod/pkg/volumes/flexvolume"
)

// maxDisks is how many disks beside the root and the cloud-init disk fit, on either
// bus.
const maxDisks = 24

// disksAnnotation begins the sentences about it.
const disksAnnotation = "annotation " + annotations.Domain + "disks"

// guestDisk is a disk of the guest beside that of cloud-init.
type guestDisk struct {
	node     string         // block device in the node's /dev; "" for a file
	file     *diskFile      // that is made for the VM
	rbd      flexvolume.RBD // in a Ceph cluster; zero for a disk of the node
	path     string         // of a link in the guest; "" for none
	mounts   []diskMount
	serial   string
	readOnly bool
	size     int64            // of the persistent root, in bytes
	use      annotations.Disk // how it is to be used
}

// diskFile is a disk that is made for a VM.
type diskFile struct {
	name       string
	folder     string // of the volume that keeps it; "" if it ends with the VM
	size       int64  // in bytes
	fileSystem string // "" for none
}

// diskMount is where the guest mounts a disk.
type diskMount struct {
	path     string
	part     int // number of the partition, 0 for the whole disk
	readOnly bool
}

// addDevices turns the block devices of a container into disks.
func (v *guestVolumes) addDevices(devices []*runtimeapi.Device) error {
	if most := maxDisks + 1; len(devices) > most {
		return fmt.Errorf("the pod has %d block devices and a VM can have %d with its root disk: %w", len(devices), most, errdefs.ErrInvalidArgument)
	}
	for _, device := range devices {
		node, err := volumes.BlockDevice(device.GetHostPath())
		if err != nil {
			return fmt.Errorf("device %s of the container: %w", device.GetContainerPath(), err)
		}
		guestPath := device.GetContainerPath()
		if !path.IsAbs(guestPath) || path.Clean(guestPath) != guestPath || strings.ContainsFunc(guestPath, isControl) {
			return fmt.Errorf("device path %q of the container is not absolute and clean: %w", guestPath, errdefs.ErrInvalidArgument)
		}
		disk := guestDisk{
			node: node, path: guestPath, serial: diskSerial(guestPath),
			readOnly: !strings.Contains(device.GetPermissions(), "w"),
		}
		if guestPath != "/" {
			v.disks = append(v.disks, disk)
			continue
		}
		if v.root = &disk; disk.readOnly {
			return fmt.Errorf("the root disk of a VM cannot be read-only: %w", errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// addVolumeDisk takes a mount that stands for a disk and reports whether it was one:
// an emptyDir that the author wants to be a disk, or a flexvolume.
func (v *guestVolumes) addVolumeDisk(mount *runtimeapi.Mount, settings annotations.Settings, rawDevices []string) (bool, error) {
	folder := mount.GetHostPath()
	where := diskMount{path: path.Clean(mount.GetContainerPath()), readOnly: mount.GetReadonly()}
	disk := guestDisk{}
	switch name, isFlexible := flexvolume.VolumeName(folder); {
	case isFlexible:
		options, err := flexvolume.Read(folder)
		if err != nil {
			return true, err
		}
		disk.serial, disk.readOnly, where.part = diskSerial("volume "+name), options.ReadOnly, options.Part
		where.readOnly = where.readOnly || options.ReadOnly
		disk.use = diskOf(settings.Disks, name)
		switch options.Type {
		case flexvolume.QCOW2:
			disk.file = &diskFile{name: disk.serial, size: options.Capacity, fileSystem: "ext4"}
		case flexvolume.Ceph:
			disk.rbd = options.RBD
		default:
			if disk.node, err = rawDevice(options.Path, rawDevices); err != nil {
				return true, fmt.Errorf("flexvolume %s: %w", name, err)
			}
		}
		if disk.use.Size > 0 || disk.use.FileSystem != "" {
			return true, fmt.Errorf("%s: volume %s is a flexVolume, whose options say its size and file system: %w", disksAnnotation, name, errdefs.ErrInvalidArgument)
		}
	case filepath.Base(filepath.Dir(folder)) == "kubernetes.io~empty-dir": // kubelet's own naming, pkg/volume/util
		name = filepath.Base(folder)
		if disk.use = diskOf(settings.Disks, name); disk.use.Volume == "" {
			return false, nil
		}
		if disk.use.Size == 0 {
			return true, fmt.Errorf("%s: volume %s is an emptyDir and needs a size to be a disk: %w", disksAnnotation, name, errdefs.ErrInvalidArgument)
		}
		disk.serial = diskSerial("volume " + name)
		disk.file = &diskFile{name: name, folder: folder, size: disk.use.Size, fileSystem: cmp.Or(disk.use.FileSystem, "ext4")}
	default:
		return false, nil
	}
	disk.path = disk.use.DevicePath
	// A volume may be mounted at several places.
	if i := slices.IndexFunc(v.disks, func(d guestDisk) bool { return d.serial == disk.serial }); i >= 0 {
		v.disks[i].mounts = append(v.disks[i].mounts, where)
		return true, nil
	}
	disk.mounts = []diskMount{where}
	v.disks = append(v.disks, disk)
	return true, nil
}

// diskOf is what the author says about the disk of a volume.
func diskOf(wishes []annotations.Disk, volume string) annotations.Disk {
	for _, wish := range wishes {
		if wish.Volume == volume {
			return wish
		}
	}
	return annotations.Disk{}
}

// rawDevice is the block device that a flexvolume names, if this node lets pods have it.
func rawDevice(name string, allowed []string) (string, error) {
	node, err := volumes.BlockDevice(name)
	if err != nil {
		return "", err
	}
	for _, pattern := range allowed {
		for _, candidate := range []string{name, node} {
			if match, err := path.Match(pattern, strings.TrimPrefix(candidate, "/dev/")); err == nil && match {
				return node, nil
			}
		}
	}
	return "", fmt.Errorf("this node gives pods no device %s, its vmruntime allows --raw-devices=%s: %w", name, strings.Join(allowed, ","), errdefs.ErrInvalidArgument)
}

// applyWishes adds the new disks that the author wants, and says how the others are
// to be used. A wish that is for no disk of the VM is an error.
func (v *guestVolumes) applyWishes(wishes []annotations.Disk) error {
	for _, wish := range wishes {
		switch {
		case wish.Name != "":
			v.disks = append(v.disks, newDisk(wish))
		case wish.Volume != "":
			if !slices.ContainsFunc(v.disks, func(d guestDisk) bool { return d.use.Volume == wish.Volume }) {
				return fmt.Errorf("%s: the container mounts no emptyDir or flexVolume %s as a whole: %w", disksAnnotation, wish.Volume, errdefs.ErrInvalidArgument)
			}
		case wish.DevicePath == "/":
			v.rootUse = wish
		default:
			i := slices.IndexFunc(v.disks, func(d guestDisk) bool {
				return d.node != "" && d.path == wish.DevicePath && d.use == annotations.Disk{}
			})
			if i < 0 {
				return fmt.Errorf("%s: no volumeDevices entry of the container has the devicePath %s: %w", disksAnnotation, wish.DevicePath, errdefs.ErrInvalidArgument)
			}
			v.disks[i].use = wish
		}
	}
	return v.checkDisks()
}

func newDisk(wish annotations.Disk) guestDisk {
	disk := guestDisk{
		file: &diskFile{name: wish.Name, size: wish.Size, fileSystem: wish.FileSystem},
		path: wish.DevicePath, serial: wish.Name, use: wish,
	}
	if wish.MountPath != "" {
		disk.mounts = []diskMount{{path: wish.MountPath}}
	}
	return disk
}

// checkDisks: the guest must be able to tell its disks apart.
func (v *guestVolumes) checkDisks() error {
	if len(v.disks) > maxDisks {
		return fmt.Errorf("the pod has %d disks and a VM can have %d beside its root disk: %w", len(v.disks), maxDisks, errdefs.ErrInvalidArgument)
	}
	serials, paths := map[string]bool{}, map[string]bool{}
	for i := range v.disks {
		disk := &v.disks[i]
		disk.serial = cmp.Or(disk.use.Serial, disk.serial)
		if serials[disk.serial] {
			return fmt.Errorf("%s: two disks have the serial %s: %w", disksAnnotation, disk.serial, errdefs.ErrInvalidArgument)
		}
		if paths[disk.path] && disk.path != "" {
			return fmt.Errorf("%s: two disks have the devicePath %s: %w", disksAnnotation, disk.path, errdefs.ErrInvalidArgument)
		}
		serials[disk.serial], paths[disk.path] = true, true
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// diskSerial is by what the guest knows a disk: as long as virtio-blk shows it.
func diskSerial(guestPath string) string {
	sum := sha256.Sum256([]byte(guestPath))
	return "vol-" + hex.EncodeToString(sum[:8])
}

// location is where the disk is.
func (f *diskFile) location(files layout.VM) string {
	if f.folder != "" {
		return layout.VolumeDisk(f.folder)
	}
	return files.Disk(f.name)
}

// makeDisks makes the disks that a VM has for itself.
func (s *Server) makeDisks(ctx context.Context, vm container, found guestVolumes) error {
	files := s.Layout.VM(vm.ID)
	for _, disk := range found.disks {
		file := disk.file
		if file == nil {
			continue
		}
		blank := volumes.Blank{
			Path: file.location(files), Format: libvirttools.FormatQCOW2, Size: file.size, FileSystem: file.fileSystem,
			UID: s.QEMUUser.UID, GID: s.QEMUUser.GID,
		}
		if file.folder != "" {
			// A guest may once have had the folder itself, and could have left a header of
			// its choice there. QEMU is given the disk by openDisks.
			blank.Format, blank.UID, blank.GID = libvirttools.FormatRaw, os.Getuid(), os.Getgid()
		}
		err := volumes.CreateBlank(ctx, blank)
		if errdefs.IsAlreadyExists(err) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return fmt.Errorf("disk %s of the pod: %w", file.name, err)
		}
	}
	return nil
}

// openDisks opens the disks in kubelet's folders, which are closed to QEMU's user.
// Its caller closes them once QEMU runs.
func (v guestVolumes) openDisks(files layout.VM) (openDisks, error) {
	var opened openDisks
	for _, disk := range v.disks {
		if disk.rbd.User != "" {
			key, err := base64.StdEncoding.DecodeString(disk.rbd.Key)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("disk %s of the pod: %w", disk.serial, err), opened.close())
			}
			opened = append(opened, libvirttools.OpenDisk{Name: disk.secret(files), Key: key})
		}
		if disk.file == nil || disk.file.folder == "" {
			continue
		}
		file, err := volumes.OpenDisk(disk.file.location(files))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("disk %s of the pod: %w", disk.file.name, err), opened.close())
		}
		opened = append(opened, libvirttools.OpenDisk{Name: disk.serial, File: file})
	}
	return opened, nil
}

type openDisks []libvirttools.OpenDisk

func (o openDisks) close() error {
	var failures error
	for _, disk := range o {
		if disk.File != nil {
			failures = errors.Join(failures, disk.File.Close())
		}
	}
	return failures
}

// libvirtDisks describes the disks to libvirt; bus is that of those which say none.
func (v guestVolumes) libvirtDisks(files layout.VM, bus string) []libvirttools.Disk {
	var disks []libvirttools.Disk
	for _, disk := range v.disks {
		out := libvirttools.Disk{Bus: bus, Serial: disk.serial, ReadOnly: disk.readOnly}
		switch {
		case disk.rbd.Image != "":
			out.Path, out.RBD, out.Format = path.Join(disk.rbd.Pool, disk.rbd.Image), disk.cluster(files), libvirttools.FormatRaw
		case disk.file == nil:
			out.Path, out.Device, out.Format = disk.node, true, libvirttools.FormatRaw
		case disk.file.folder == "":
			out.Path, out.Ephemeral, out.Format = disk.file.location(files), true, libvirttools.FormatQCOW2
		default:
			out.Path, out.Handed, out.Format = disk.file.location(files), disk.serial, libvirttools.FormatRaw
		}
		useAs(&out, disk.use)
		disks = append(disks, out)
	}
	return disks
}

// cluster is where libvirt finds a disk that is not on the node.
func (d guestDisk) cluster(files layout.VM) *libvirttools.RBD {
	cluster := &libvirttools.RBD{User: d.rbd.User}
	if d.rbd.User != "" {
		cluster.Secret = d.secret(files)
	}
	for monitor := range strings.SplitSeq(d.rbd.Monitors, ",") {
		cluster.Monitors = append(cluster.Monitors, flexvolume.WithPort(monitor))
	}
	return cluster
}

// secret is what libvirt calls the key to a disk's cluster. It is the VM's own.
func (d guestDisk) secret(files layout.VM) string { return files.Dir + " " + d.serial }

// useAs changes how a disk is used to what the author says.
func useAs(disk *libvirttools.Disk, wish annotations.Disk) {
	disk.Bus, disk.Serial = cmp.Or(wish.Bus, disk.Bus), cmp.Or(wish.Serial, disk.Serial)
	disk.Cache, disk.IO, disk.Discard = wish.Cache, wish.IO, wish.Discard
}

// findDisk finds, in the guest, the disk with the serial $1 that is for $2. One on a
// bus whose driver is still being loaded may take a moment to appear. Programs are
// started for SCSI alone: it is done for each of many disks, at each boot.
const findDisk = `for second in 1 2 3 4 5 6 7 8 9 10; do
  for disk in /sys/block/*; do
    serial=
    if [ -e "$disk/serial" ]; then read -r serial <"$disk/serial"
    elif [ -e "$disk/device/vpd_pg80" ]; then serial=$(tail -c +5 "$disk/device/vpd_pg80" 2>/dev/null | tr -d '\0'); fi
    [ "$serial" = "$1" ] && break 2
  done
  disk=; sleep 1
done
[ "$disk" ] || { echo "ambipod: the disk for $2 is missing" >/dev/console; exit 1; }
`

// linkDisk makes, in the guest, the path of a disk a link to it. What is there and no
// link stays.
const linkDisk = findDisk + `mkdir -p "${2%/*}/"
if [ -L "$2" ] || [ ! -e "$2" ]; then exec ln -sfn "/dev/${disk##*/}" "$2"; fi
[ "${disk##*/}" = "${2##*/}" ] && exit 0
echo "ambipod: $2 exists already, the disk is /dev/${disk##*/}" >/dev/console; exit 1`

// mountDisk mounts, in the guest, a disk or its partition $3.
const mountDisk = findDisk + `device=${disk##*/}
[ "$3" = 0 ] || for part in "$disk"/*/partition; do
  [ -e "$part" ] && [ "$(cat "$part")" = "$3" ] && device=${part%/partition} && device=${device##*/} && break
done
[ "$3" = 0 ] || [ "$device" != "${disk##*/}" ] || { echo "ambipod: the disk for $2 has no partition $3" >/dev/console; exit 1; }
mkdir -p "$2" && { grep -qF " $2 " /proc/mounts || mount -o "$4" "/dev/$device" "$2"; } ||
{ echo "ambipod: disk $device cannot be mounted at $2" >/dev/console; exit 1; }`

// linkCommands make the links to disks.
func (v guestVolumes) linkCommands() []cloudinit.Command {
	var commands []cloudinit.Command
	for _, disk := range v.disks {
		if disk.path != "" {
			commands = append(commands, cloudinit.Command{"sh", "-c", linkDisk, "ambipod-disk", disk.serial, disk.path})
		}
	}
	return commands
}

func (d guestDisk) mountCommand(at diskMount) cloudinit.Command {
	return cloudinit.Command{"sh", "-c", mountDisk, "ambipod-mount", d.serial, at.path, strconv.Itoa(at.part), mountMode(at.readOnly || d.readOnly)}
}

func mountMode(readOnly bool) string {
	if readOnly {
		return "ro"
	}
	return "rw"
}
