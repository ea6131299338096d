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
	disks, err := volumes.MeasureUsage(s.Layout.VMs())
	if err != nil {
		return nil, fmt.Errorf("disk use of VMs: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{
		//nolint:gosec // sizes and counts are positive
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystem(images.Mountpoint, uint64(images.Bytes), uint64(images.Inodes))},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystem(s.Layout.VMs(), disks.Bytes, disks.Inodes)},
	}, nil
}

func filesystem(mountpoint string, bytes, inodes uint64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  number(bytes),
		InodesUsed: number(inodes),
	}
}
