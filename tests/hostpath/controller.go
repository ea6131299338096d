package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
)

// defaultSize, in bytes, is that of a volume for which nobody wants another.
const defaultSize = 1 << 20

// ControllerGetCapabilities is CSI's.
func (*Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{{
		Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{
			Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		}},
	}}}, nil
}

// CreateVolume is CSI's. The volume's name is its ID. A folder is as large as the disk
// that it is on, whatever was asked for.
func (d *Driver) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	path, err := d.path(request.GetName())
	if err != nil {
		return nil, err
	}
	block, err := wantsBlock(request.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if request.GetVolumeContentSource() != nil || len(request.GetMutableParameters()) > 0 {
		return nil, fmt.Errorf("a volume of this driver is empty and has no parameters: %w", errdefs.ErrInvalidArgument)
	}
	if err := d.reachable(request.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	limits := request.GetCapacityRange()
	size, most := max(limits.GetRequiredBytes(), defaultSize), limits.GetLimitBytes()
	if limits.GetRequiredBytes() == 0 && most > 0 {
		size = most
	}
	if most > 0 && size > most {
		return nil, fmt.Errorf("a volume has %d bytes at least, the limit is %d: %w", size, most, errdefs.ErrOutOfRange)
	}
	if size, err = makeVolume(path, block, size, most); err != nil {
		return nil, fmt.Errorf("make volume %s: %w", request.GetName(), err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: request.GetName(), CapacityBytes: size, AccessibleTopology: []*csi.Topology{d.topology()},
	}}, nil
}

// makeVolume returns the size of the volume, which may have been there before.
func makeVolume(path string, block bool, size, most int64) (int64, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && block:
		return size, makeFile(path, size)
	case errors.Is(err, fs.ErrNotExist):
		return size, os.Mkdir(path, 0o750)
	case err != nil:
		return 0, err
	case block != info.Mode().IsRegular():
		return 0, fmt.Errorf("there is one of the other kind: %w", errdefs.ErrAlreadyExists)
	case block && (info.Size() < size || most > 0 && info.Size() > most):
		return 0, fmt.Errorf("there is one of %d bytes: %w", info.Size(), errdefs.ErrAlreadyExists)
	case block:
		return info.Size(), nil
	}
	return size, nil
}

// makeFile makes a file of zeros, which has its size from the start.
func makeFile(path string, size int64) error {
	unfinished := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	err := os.WriteFile(unfinished, nil, 0o600)
	if err == nil {
		err = os.Truncate(unfinished, size)
	}
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	return err
}

// DeleteVolume is CSI's. An attached volume stays.
func (d *Driver) DeleteVolume(ctx context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	path, err := d.path(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	devices, err := devicesOf(ctx, path)
	if err == nil && len(devices) > 0 {
		err = fmt.Errorf("it is attached as %s: %w", strings.Join(devices, ", "), errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = os.RemoveAll(path)
	}
	if err != nil {
		return nil, fmt.Errorf("delete volume %s: %w", request.GetVolumeId(), err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities is CSI's.
func (d *Driver) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	_, isBlock, err := d.volume(request.GetVolumeId())
	if err != nil {
		return nil, err
	}
	block, err := wantsBlock(request.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if block != isBlock {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: "the volume is of the other kind"}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeCapabilities: request.GetVolumeCapabilities(),
	}}, nil
}

// path is where a volume is or would be.
func (d *Driver) path(id string) (string, error) {
	if id == "" || strings.HasPrefix(id, ".") || strings.ContainsAny(id, "/\x00") {
		return "", fmt.Errorf("%q cannot be the name of a volume: %w", id, errdefs.ErrInvalidArgument)
	}
	return d.Volume(id), nil
}

// volume finds a volume and says whether it is a block device's.
func (d *Driver) volume(id string) (path string, block bool, err error) {
	if path, err = d.path(id); err != nil {
		return "", false, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", false, fmt.Errorf("find volume %s: %w", id, err)
	}
	return path, info.Mode().IsRegular(), nil
}

// wantsBlock says of which kind the volume is to be for all who use it.
func wantsBlock(capabilities []*csi.VolumeCapability) (bool, error) {
	blocks := 0
	for _, c := range capabilities {
		if c.GetBlock() != nil {
			blocks++
		}
	}
	if len(capabilities) == 0 || blocks > 0 && blocks < len(capabilities) {
		return false, fmt.Errorf("a volume is either a block device or a file system: %w", errdefs.ErrInvalidArgument)
	}
	return blocks > 0, nil
}

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{d.cfg.Name + "/node": d.cfg.Node}}
}

// reachable refuses volumes for other nodes alone.
func (d *Driver) reachable(from *csi.TopologyRequirement) error {
	if from == nil || slices.ContainsFunc(slices.Concat(from.GetRequisite(), from.GetPreferred()), func(t *csi.Topology) bool {
		return maps.Equal(t.GetSegments(), d.topology().GetSegments())
	}) {
		return nil
	}
	return fmt.Errorf("volumes are on node %s alone: %w", d.cfg.Node, errdefs.ErrResourceExhausted)
}
