package criserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/volumes"
)

// maxShares is how many folders fit; see libvirttools.
const maxShares = 32

// guestVolumes is what of a pod's volumes goes into its guest, by the way it takes.
type guestVolumes struct {
	mounts []*runtimeapi.Mount // all that the container mounts
	files  []*runtimeapi.Mount // copied at the first boot
	shares []guestShare        // folders of the node
	disks  []guestDisk         // block devices of the node, and files that are made
	root   *guestDisk          // the one that the guest boots from; nil for a disk that ends with the VM

	folders string           // how the guest has shares: foldersVirtioFS or folders9P
	rootUse annotations.Disk // how the disk is to be used that the guest boots from
}

// guestShare is a folder that the guest mounts.
type guestShare struct {
	tag   string
	mount *runtimeapi.Mount
}

// The ways in which guests have folders.
const (
	foldersVirtioFS = "virtiofs" // each has a server
	folders9P       = "9p"       // QEMU serves them
)

// volumesOf sorts the volumes of a container by the way in which a guest can have
// them. It looks at the node's files but changes nothing.
//
// Volumes that kubelet fills are copied unless the settings say otherwise.
func (s *Server) volumesOf(config *runtimeapi.ContainerConfig, settings annotations.Settings) (guestVolumes, error) {
	found := guestVolumes{folders: cmp.Or(settings.Folders, s.Folders)}
	config, err := asSeenHere(s.HostRoot, config)
	if err != nil {
		return found, err
	}
	found.mounts = config.GetMounts()
	for i, mount := range config.GetMounts() {
		if mount.GetContainerPath() == terminationLog {
			continue
		}
		if err := found.addMount(i, mount, settings, s.RawDevices); err != nil {
			return found, fmt.Errorf("volume mounted at %s: %w", mount.GetContainerPath(), err)
		}
	}
	if len(found.shares) > maxShares {
		return found, fmt.Errorf("the pod mounts %d folders and a VM can have %d, use fewer volumes: %w", len(found.shares), maxShares, errdefs.ErrInvalidArgument)
	}
	if err := found.addDevices(config.GetDevices()); err != nil {
		return found, err
	}
	return found, found.applyWishes(settings.Disks)
}

// addMount takes the n-th mount of a container.
func (v *guestVolumes) addMount(n int, mount *runtimeapi.Mount, settings annotations.Settings, rawDevices []string) error {
	if isDisk, err := v.addVolumeDisk(mount, settings, rawDevices); err != nil || isDisk {
		return err
	}
	share, err := isShared(mount, settings.MountConfig)
	switch {
	case err != nil:
		return err
	case share:
		// Unique, whatever the folders are called.
		v.shares = append(v.shares, guestShare{"volume" + strconv.Itoa(n), mount})
	default:
		v.files = append(v.files, mount)
	}
	return nil
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

// mountShare mounts a shared folder in the guest. cloud-init's own module for that
// passes over sources that are no block devices (22.4, cc_mounts.sanitize_devname).
const mountShare = `mkdir -p "$2" && { grep -q "^$1 " /proc/mounts || mount -t "$3" -o "$4" "$1" "$2"; } ||
{ echo "ambipod: volume $2 cannot be mounted, which takes a kernel with $3 (virtiofs: Linux 5.4 or later)" >/dev/console; exit 1; }`

// mountOptions are those of a file system type beside ro and rw.
var mountOptions = map[string]string{foldersVirtioFS: "", folders9P: ",trans=virtio,version=9p2000.L"}

// bootCommands make the volumes appear in the guest at each of its boots.
func (v guestVolumes) bootCommands() []cloudinit.Command {
	mounts := map[string]cloudinit.Command{}
	for _, share := range v.shares {
		at := path.Clean(share.mount.GetContainerPath())
		mounts[at] = cloudinit.Command{"sh", "-c", mountShare, "ambipod-mount", share.tag, at, v.folders, mountMode(share.mount.GetReadonly()) + mountOptions[v.folders]}
	}
	for _, disk := range v.disks {
		for _, at := range disk.mounts {
			mounts[at.path] = disk.mountCommand(at)
		}
	}
	commands := v.linkCommands()
	for _, at := range slices.Sorted(maps.Keys(mounts)) { // a volume may be mounted inside of another
		commands = append(commands, mounts[at])
	}
	return commands
}

// shareSocket is where the server of a folder listens.
func shareSocket(files layout.VM, tag string) string { return filepath.Join(files.RunDir, tag) }

// libvirtShares describes folders to libvirt.
func (v guestVolumes) libvirtShares(files layout.VM) []libvirttools.Share {
	var shares []libvirttools.Share
	for _, share := range v.shares {
		if v.folders == folders9P {
			shares = append(shares, libvirttools.Share{Tag: share.tag, Folder: filepath.Clean(share.mount.GetHostPath()), ReadOnly: share.mount.GetReadonly()})
			continue
		}
		shares = append(shares, libvirttools.Share{Tag: share.tag, Socket: shareSocket(files, share.tag)})
	}
	return shares
}

// checkFolders: by 9p QEMU opens the folders itself; else they have servers.
func (s *Server) checkFolders(ctx context.Context, found guestVolumes) error {
	if found.folders != folders9P {
		if len(found.shares) > 0 && s.Folders == folders9P {
			return fmt.Errorf("annotation %sfolders: this node has no virtiofsd, let the pod have its folders by 9p, "+
				"or install the package qemu-system-common or see vmruntime --virtiofsd: %w", annotations.Domain, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	for _, share := range found.shares {
		if err := volumes.CheckReach(ctx, share.mount.GetHostPath(), s.QEMUUser.UID, s.QEMUUser.GID, share.mount.GetReadonly()); err != nil {
			return fmt.Errorf("volume mounted at %s: %w", share.mount.GetContainerPath(), err)
		}
	}
	return nil
}

// served are the folders that have servers.
func (v guestVolumes) served() []guestShare {
	if v.folders == folders9P {
		return nil
	}
	return v.shares
}

// servings are the servers of a VM's folders that were started for it.
type servings []*volumes.Serving

// startHelpers starts the processes that QEMU needs beside it, in the VM's control
// group: the servers of the VM's folders, and its TPM. They end with QEMU; its caller
// ends the group if QEMU does not come to run.
func (s *Server) startHelpers(ctx context.Context, box sandbox, vm container, shares []guestShare, settings annotations.Settings) (servings, error) {
	if len(shares) == 0 && !settings.TPM {
		return nil, nil
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
	for _, share := range shares {
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
