package criserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/diskusage"
)

// ImageFsInfo tells what the image store itself uses, and what the VMs' own disks do.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, err := s.Images.Usage()
	if err != nil {
		return nil, err
	}
	disks, err := diskusage.MeasureOwn(s.Layout.VMs())
	if err != nil {
		return nil, fmt.Errorf("disk use of VMs: %w", err)
	}
	ofImages, err := s.filesystem(s.Layout.Images(), images)
	if err != nil {
		return nil, fmt.Errorf("file system of images: %w", err)
	}
	ofDisks, err := s.filesystem(s.Layout.VMs(), disks)
	if err != nil {
		return nil, fmt.Errorf("file system of VMs: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{ofImages},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{ofDisks},
	}, nil
}

// filesystem is what a folder takes of the file system that it lies on.
func (s *Server) filesystem(folder string, used diskusage.Usage) (*runtimeapi.FilesystemUsage, error) {
	mountpoint, err := s.mounts.of(folder)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  number(used.Bytes),
		InodesUsed: number(used.Inodes),
	}, nil
}

// mountpoints are found once for each of our folders: they stay where they are while
// this process has its databases open below them.
type mountpoints struct {
	mu    sync.Mutex // guards known
	known map[string]string
}

func (m *mountpoints) of(folder string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, found := m.known[folder]; found {
		return known, nil
	}
	mountpoint, err := diskusage.Mountpoint(folder)
	if err != nil {
		return "", err
	}
	if m.known == nil {
		m.known = map[string]string{}
	}
	m.known[folder] = mountpoint
	return mountpoint, nil
}
