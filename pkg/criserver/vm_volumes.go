package criserver

import (
	"cmp"
	"context"
	"crypto/sha256"
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
	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/volumes"
)

const (
	// maxDisks is how many disks beside the root and the cloud-init disk fit, on
	// either bus.
	maxDisks = 24
	// maxShares is how many folders fit; see libvirttools.
	maxShares = 32
)

// guestVolumes is what of a pod's volumes goes into its guest, by the way it takes.
type guestVolumes struct {
	files  []*runtimeapi.Mount // copied at the first boot
	shares []guestShare        // folders of the node
	disks  []guestDisk         // block devices of the node
	root   *guestDisk          // the one that the guest boots from; nil for a disk that ends with the VM
}

// guestShare is a folder that the guest mounts.
type guestShare struct {
	tag   string
	mount *runtimeapi.Mount
}

// guestDisk is a block device that the guest has as a disk.
type guestDisk struct {
	node     string // in the node's /dev
	path     string // in the guest
	serial   string
	readOnly bool
	size     int64 // of the root, in bytes
}

// volumesOf sorts the volumes of a container by the way in which a guest can have
// them. It looks at the node's files but changes nothing.
//
// Volumes that kubelet fills are copied unless mountConfig says otherwise.
func volumesOf(config *runtimeapi.ContainerConfig, mountConfig bool) (guestVolumes, error) {
	var found guestVolumes
	for i, mount := range config.GetMounts() {
		if mount.GetContainerPath() == terminationLog {
			continue
		}
		share, err := isShared(mount, mountConfig)
		if err != nil {
			return found, fmt.Errorf("volume mounted at %s: %w", mount.GetContainerPath(), err)
		}
		if share {
			// Unique, whatever the folders are called.
			found.shares = append(found.shares, guestShare{"volume" + strconv.Itoa(i), mount})
		} else {
			found.files = append(found.files, mount)
		}
	}
	if len(found.shares) > maxShares {
		return found, fmt.Errorf("the pod mounts %d folders and a VM can have %d, use fewer volumes: %w", len(found.shares), maxShares, errdefs.ErrInvalidArgument)
	}
	// A volume may be mounted inside of another.
	slices.SortStableFunc(found.shares, func(a, b guestShare) int {
		return cmp.Compare(a.mount.GetContainerPath(), b.mount.GetContainerPath())
	})
	var err error
	if found.disks, err = disksOf(config.GetDevices()); err != nil {
		return found, err
	}
	if i := slices.IndexFunc(found.disks, func(d guestDisk) bool { return d.path == "/" }); i >= 0 {
		root := found.disks[i]
		if found.disks, found.root = slices.Delete(found.disks, i, i+1), &root; root.readOnly {
			return found, fmt.Errorf("the root disk of a VM cannot be read-only: %w", errdefs.ErrInvalidArgument)
		}
	}
	return found, nil
}

// isShared tells folders, which guests mount, from files, which are copied. Folders
// that kubelet fills with ConfigMaps and the like count as files: guests have them
// before anything of theirs runs.
func isShared(mount *runtimeapi.Mount, mountConfig bool) (bool, error) {
	switch {
	case mount.GetImage() != nil:
		return false, fmt.Errorf("an image cannot be mounted into a VM, bring its files in a ConfigMap or on the root disk: %w", errdefs.ErrInvalidArgument)
	case mount.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return false, fmt.Errorf("a VM cannot mount anything for its node, choose the mountPropagation HostToContainer or None: %w", errdefs.ErrInvalidArgument)
	}
	info, err := os.Stat(mount.GetHostPath())
	if err != nil {
		return false, fmt.Errorf("the node has no such folder or file, create it first: %w: %w", err, errdefs.ErrNotFound)
	}
	switch {
	case info.IsDir():
		return mountConfig || !isKubeletData(mount.GetHostPath()), nil
	case info.Mode().IsRegular():
		return false, nil
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return false, fmt.Errorf("%s is a block device, which a VM can have as a disk: list it in volumeDevices: %w", mount.GetHostPath(), errdefs.ErrInvalidArgument)
	}
	return false, fmt.Errorf("%s is neither a folder nor a file but a socket, pipe or device of the node, which a VM cannot use: %w",
		mount.GetHostPath(), errdefs.ErrInvalidArgument)
}

func disksOf(devices []*runtimeapi.Device) ([]guestDisk, error) {
	if len(devices) > maxDisks {
		return nil, fmt.Errorf("the pod has %d block devices and a VM can have %d beside its root disk: %w", len(devices), maxDisks, errdefs.ErrInvalidArgument)
	}
	var disks []guestDisk
	for _, device := range devices {
		node, err := volumes.BlockDevice(device.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("device %s of the container: %w", device.GetContainerPath(), err)
		}
		guestPath := device.GetContainerPath()
		if !path.IsAbs(guestPath) || path.Clean(guestPath) != guestPath || strings.ContainsFunc(guestPath, isControl) {
			return nil, fmt.Errorf("device path %q of the container is not absolute and clean: %w", guestPath, errdefs.ErrInvalidArgument)
		}
		disks = append(disks, guestDisk{
			node: node, path: guestPath, serial: diskSerial(guestPath),
			readOnly: !strings.Contains(device.GetPermissions(), "w"),
		})
	}
	return disks, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// diskSerial is by what the guest knows a disk: as long as virtio-blk shows it.
func diskSerial(guestPath string) string {
	sum := sha256.Sum256([]byte(guestPath))
	return "vol-" + hex.EncodeToString(sum[:8])
}

// linkDisk makes, in the guest, the path of a block device a link to the disk with
// its serial. What is there and no link stays.
const linkDisk = `for disk in /sys/block/*; do
  { cat "$disk/serial" || tail -c +5 "$disk/device/vpd_pg80"; } 2>/dev/null | grep -aqF "$1" || continue
  mkdir -p "${2%/*}/"
  if [ -L "$2" ] || [ ! -e "$2" ]; then exec ln -sfn "/dev/${disk##*/}" "$2"; fi
  [ "${disk##*/}" = "${2##*/}" ] && exit 0
  echo "ambipod: $2 exists already, the disk is /dev/${disk##*/}" >/dev/console; exit 1
done
echo "ambipod: the disk for $2 is missing" >/dev/console; exit 1`

// mountShare mounts a shared folder in the guest. cloud-init's own module for that
// passes over sources that are no block devices (22.4, cc_mounts.sanitize_devname).
const mountShare = `mkdir -p "$2" && { grep -q "^$1 " /proc/mounts || mount -t virtiofs -o "$3" "$1" "$2"; } ||
{ echo "ambipod: volume $2 cannot be mounted, which takes Linux 5.4 or later with virtiofs" >/dev/console; exit 1; }`

// bootCommands make the volumes appear in the guest at each of its boots.
func (v guestVolumes) bootCommands() []cloudinit.Command {
	var commands []cloudinit.Command
	for _, disk := range v.disks {
		commands = append(commands, cloudinit.Command{"sh", "-c", linkDisk, "ambipod-disk", disk.serial, disk.path})
	}
	for _, share := range v.shares {
		mode := "rw"
		if share.mount.GetReadonly() {
			mode = "ro"
		}
		commands = append(commands, cloudinit.Command{"sh", "-c", mountShare, "ambipod-mount", share.tag, path.Clean(share.mount.GetContainerPath()), mode})
	}
	return commands
}

// shareSocket is where the server of a folder listens.
func shareSocket(files layout.VM, tag string) string { return filepath.Join(files.RunDir, tag) }

// libvirtShares and libvirtDisks describe volumes to libvirt.
func (v guestVolumes) libvirtShares(files layout.VM) []libvirttools.Share {
	var shares []libvirttools.Share
	for _, share := range v.shares {
		shares = append(shares, libvirttools.Share{Tag: share.tag, Socket: shareSocket(files, share.tag)})
	}
	return shares
}

func (v guestVolumes) libvirtDisks(bus string) []libvirttools.Disk {
	var disks []libvirttools.Disk
	for _, disk := range v.disks {
		disks = append(disks, libvirttools.Disk{
			Path: disk.node, Device: true, Format: libvirttools.FormatRaw, Bus: bus, Serial: disk.serial, ReadOnly: disk.readOnly,
		})
	}
	return disks
}

// servings are the servers of a VM's folders that were started for it.
type servings []*volumes.Serving

// startHelpers starts the processes that QEMU needs beside it, in the VM's control
// group: the servers of the VM's folders, and its TPM. They end with QEMU; its caller
// ends the group if QEMU does not come to run.
func (s *Server) startHelpers(ctx context.Context, box sandbox, vm container, settings annotations.Settings) (_ servings, err error) {
	found, err := volumesOf(vm.config, settings.MountConfig)
	if err != nil || len(found.shares) == 0 && !settings.TPM {
		return nil, err
	}
	group := s.cgroupOf(box, vm.ID)
	// What an attempt that died has left keeps its sockets occupied.
	if err := cgroup.End(ctx, group); err != nil {
		return nil, err
	}
	if err := s.makeGroup(box, vm); err != nil {
		return nil, err
	}
	if err := s.startTPM(ctx, box, vm, settings); err != nil {
		return nil, err
	}
	var started servings
	for _, share := range found.shares {
		serving, err := s.Shares.Serve(ctx, volumes.Share{
			Source:   share.mount.GetHostPath(),
			ReadOnly: share.mount.GetReadonly(),
			Follow:   share.mount.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
			Socket:   shareSocket(s.Layout.VM(vm.ID), share.tag),
			Group:    group,
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("volume mounted at %s: %w", share.mount.GetContainerPath(), err), started.close())
		}
		started = append(started, serving)
	}
	return started, nil
}

// problems is what the servers said, which may be why QEMU did not start.
func (s servings) problems() error {
	var said error
	for _, serving := range s {
		said = errors.Join(said, serving.Problem())
	}
	return said
}

func (s servings) close() error {
	var failures error
	for _, serving := range s {
		failures = errors.Join(failures, serving.Close())
	}
	return failures
}
