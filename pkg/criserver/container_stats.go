package criserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/volumes"
)

// ContainerStats tells what a VM uses: CPU and memory of QEMU from its control
// group, and the bytes that its root disk has grown to.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, err := s.stats(vm)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats lists the use of running VMs that a filter lets pass. A VM whose
// use cannot be read is left out and reported; it must not spoil the others'.
func (s *Server) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	all, err := s.containers()
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListContainerStatsResponse{}
	filter := req.GetFilter()
	for _, vm := range all {
		if !vm.Running() || !strings.HasPrefix(vm.ID, filter.GetId()) || !strings.HasPrefix(vm.SandboxID, filter.GetPodSandboxId()) ||
			!matchesLabels(filter.GetLabelSelector(), vm.config.GetLabels()) {
			continue
		}
		stats, err := s.stats(vm)
		if err != nil {
			s.Logger.WarnContext(ctx, "no statistics", "container", vm.ID, "err", err)
			continue
		}
		response.Stats = append(response.Stats, stats)
	}
	return response, nil
}

// stats reads the use of one VM. One that does not run has only its disk.
func (s *Server) stats(vm container) (*runtimeapi.ContainerStats, error) {
	now := time.Now().UnixNano()
	stats := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id:          vm.ID,
		Metadata:    vm.config.GetMetadata(),
		Labels:      vm.config.GetLabels(),
		Annotations: vm.config.GetAnnotations(),
	}}
	usage, err := volumes.MeasureUsage(s.Layout.VM(vm.ID).Dir)
	if err != nil {
		return nil, fmt.Errorf("disk use of VM %s: %w", vm.ID, err)
	}
	stats.WritableLayer = &runtimeapi.FilesystemUsage{
		Timestamp:  now,
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.Layout.VMs()},
		UsedBytes:  number(usage.Bytes),
		InodesUsed: number(usage.Inodes),
	}
	if !vm.Running() {
		return stats, nil
	}
	box, err := s.findSandbox(vm.SandboxID)
	if err != nil {
		return nil, err
	}
	group, err := cgroup.Read(s.cgroupOf(box, vm.ID))
	if errdefs.IsNotFound(err) {
		return stats, nil // it has just ended
	}
	if err != nil {
		return nil, fmt.Errorf("use of VM %s: %w", vm.ID, err)
	}
	stats.Cpu = &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: number(uint64(group.CPU))} //nolint:gosec // not negative
	stats.Memory = &runtimeapi.MemoryUsage{
		Timestamp:       now,
		WorkingSetBytes: number(group.WorkingSet),
		UsageBytes:      number(group.Memory),
		RssBytes:        number(group.RSS),
		PageFaults:      number(group.PageFaults),
		MajorPageFaults: number(group.MajorPageFaults),
	}
	return stats, nil
}

func number(value uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: value} }
