package criserver

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/volumes"
)

// ImageFsInfo tells what the image store itself uses, and what the VMs' own disks do.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, err := s.Images.Usage()
	if err != nil {
		return nil, err
	}
	disks, err := volumes.DiskUsage(s.Layout.VMs())
	if err != nil {
		return nil, fmt.Errorf("disk use of VMs: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystem(images.Mountpoint, images.Bytes, images.Inodes)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystem(s.Layout.VMs(), disks.Bytes, disks.Inodes)},
	}, nil
}

func filesystem(mountpoint string, bytes, inodes int64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  number(uint64(bytes)),  //nolint:gosec // sizes are positive
		InodesUsed: number(uint64(inodes)), //nolint:gosec // counts are positive
	}
}
