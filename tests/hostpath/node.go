package hostpath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// NodeGetInfo is CSI's.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.cfg.Node, AccessibleTopology: d.topology()}, nil
}

// NodeGetCapabilities is CSI's: a volume is attached once for all its pods.
func (*Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{{
		Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{
			Type: csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		}},
	}}}, nil
}

// NodeStageVolume is CSI's. It attaches a block device; a folder needs nothing.
func (d *Driver) NodeStageVolume(ctx context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	path, err := d.wanted(request.GetVolumeId(), request.GetVolumeCapability())
	if err == nil && request.GetVolumeCapability().GetBlock() != nil {
		_, err = attach(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume is CSI's.
func (d *Driver) NodeUnstageVolume(ctx context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	path, err := d.path(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	devices, err := devicesOf(ctx, path)
	for _, device := range devices {
		err = errors.Join(err, detach(ctx, device))
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume is CSI's.
func (d *Driver) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	source, err := d.wanted(request.GetVolumeId(), request.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	target := request.GetTargetPath()
	if request.GetVolumeCapability().GetBlock() == nil {
		err = publish(source, target, os.ModeDir, request.GetReadonly())
	} else if request.GetReadonly() {
		err = fmt.Errorf("a block device of this driver can be written to: %w", errdefs.ErrInvalidArgument)
	} else if source, err = attach(ctx, source); err == nil {
		err = publish(source, target, 0, false)
	}
	if err != nil {
		return nil, fmt.Errorf("publish volume %s: %w", request.GetVolumeId(), err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume is CSI's.
func (d *Driver) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if _, err := d.path(request.GetVolumeId()); err != nil {
		return nil, err
	}
	target := request.GetTargetPath()
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // it is no mount, or has gone
	}
	if err == nil {
		err = os.Remove(target)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("withdraw volume %s from %s: %w", request.GetVolumeId(), target, err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// wanted is the path of a volume which must be of the kind that somebody wants.
func (d *Driver) wanted(id string, as *csi.VolumeCapability) (string, error) {
	path, isBlock, err := d.volume(id)
	if err == nil && isBlock != (as.GetBlock() != nil) {
		err = fmt.Errorf("volume %s is of the other kind: %w", id, errdefs.ErrInvalidArgument)
	}
	return path, err
}

// publish mounts a folder, or a device, at a path, unless it is there.
func publish(source, target string, kind fs.FileMode, readOnly bool) error {
	if same, err := isAt(source, target); same || err != nil {
		return err
	}
	var err error
	if kind.IsDir() {
		err = os.MkdirAll(target, 0o750)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err == nil {
		err = unix.Mount(source, target, "", unix.MS_BIND, "")
	}
	if err == nil && readOnly {
		err = unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return err
}

// isAt says whether two paths are of the same file.
func isAt(source, target string) (bool, error) {
	want, err := os.Stat(source)
	if err != nil {
		return false, err
	}
	got, err := os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(want, got), err
}

// attach returns the loop device of a file, a new one unless it has one.
func attach(ctx context.Context, file string) (string, error) {
	devices, err := devicesOf(ctx, file)
	if err != nil {
		return "", err
	}
	if len(devices) > 0 {
		return devices[0], nil
	}
	out, err := losetup(ctx, "--find", "--show", file)
	return strings.TrimSpace(out), err
}

func detach(ctx context.Context, device string) error {
	_, err := losetup(ctx, "--detach", device)
	return err
}

// devicesOf lists the loop devices of a file; one that does not exist has none.
func devicesOf(ctx context.Context, file string) ([]string, error) {
	if info, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	out, err := losetup(ctx, "--list", "--noheadings", "--output", "NAME", "--associated", file)
	return strings.Fields(out), err
}

// losetup is that of Debian's package mount. It is not stopped midway.
func losetup(ctx context.Context, args ...string) (string, error) {
	var complaint bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "losetup", args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("losetup %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}
