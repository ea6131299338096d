package criserver

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/diskusage"
)

// ContainerStats tells what a VM uses: CPU and memory of QEMU from its control
// group, and the bytes that its disks have grown to. QEMU itself is not asked: one
// that hangs would hold up the caller.
func (s *Server) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	box, err := s.findSandbox(vm.SandboxID)
	if err != nil {
		return nil, err
	}
	stats, err := s.stats(ctx, box, vm)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats lists the use of running VMs that a filter lets pass. A VM whose
// use cannot be read is left out and reported; it must not spoil the others'.
func (s *Server) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	census, err := s.census()
	if err != nil {
		return nil, err
	}
	filter := req.GetFilter()
	var read []func() *runtimeapi.ContainerStats
	for _, box := range census.boxes {
		for _, vm := range census.vms[box.ID] {
			if !vm.Running() || !strings.HasPrefix(vm.ID, filter.GetId()) || !strings.HasPrefix(vm.SandboxID, filter.GetPodSandboxId()) ||
				!matchesLabels(filter.GetLabelSelector(), vm.config.GetLabels()) {
				continue
			}
			read = append(read, func() *runtimeapi.ContainerStats { return s.statsIfAny(ctx, box, vm) })
		}
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: readAll(read)}, nil
}

// readAll calls functions, as many at a time as there are processors, and returns what
// they return in their order, without nil.
func readAll[T any](read []func() *T) []*T {
	results := make([]*T, len(read))
	var next atomic.Int64
	var readers sync.WaitGroup
	for range min(len(read), runtime.GOMAXPROCS(0)) {
		readers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(read)); i = next.Add(1) - 1 {
				results[i] = read[i]()
			}
		})
	}
	readers.Wait()
	return slices.DeleteFunc(results, func(one *T) bool { return one == nil })
}

// census is all sandboxes, and the VMs of each.
type census struct {
	boxes []sandbox
	vms   map[string][]container
}

func (s *Server) census() (census, error) {
	boxes, err := s.sandboxes()
	if err != nil {
		return census{}, err
	}
	all, err := s.containers()
	if err != nil {
		return census{}, err
	}
	c := census{boxes: boxes, vms: map[string][]container{}}
	for _, vm := range all {
		c.vms[vm.SandboxID] = append(c.vms[vm.SandboxID], vm)
	}
	return c, nil
}

// statsIfAny is for lists: nil is a VM whose use cannot be read.
func (s *Server) statsIfAny(ctx context.Context, box sandbox, vm container) *runtimeapi.ContainerStats {
	stats, err := s.stats(ctx, box, vm)
	if err != nil {
		s.Logger.WarnContext(ctx, "no statistics", "container", vm.ID, "err", err)
		return nil
	}
	return stats
}

// stats reads the use of one VM. One that does not run has only its disks; one whose
// files are gone still has the rest.
func (s *Server) stats(ctx context.Context, box sandbox, vm container) (*runtimeapi.ContainerStats, error) {
	now := time.Now()
	stats := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id:          vm.ID,
		Metadata:    vm.config.GetMetadata(),
		Labels:      vm.config.GetLabels(),
		Annotations: vm.config.GetAnnotations(),
	}}
	usage, err := diskusage.MeasureOwn(s.Layout.VM(vm.ID).Dir)
	if err == nil {
		stats.WritableLayer, err = s.filesystem(s.Layout.VMs(), usage)
	}
	if err != nil {
		s.Logger.WarnContext(ctx, "no statistics of disks", "container", vm.ID, "err", err)
	}
	if !vm.Running() {
		return stats, nil
	}
	group, err := cgroup.ReadUse(s.cgroupOf(box, vm.ID))
	if errdefs.IsNotFound(err) {
		return stats, nil // it has just ended
	}
	if err != nil {
		return nil, fmt.Errorf("use of VM %s: %w", vm.ID, err)
	}
	stats.Cpu = s.cpuUsage(vm.ID, now, group)
	stats.Memory = memoryUsage(now, group)
	stats.Swap = &runtimeapi.SwapUsage{Timestamp: now.UnixNano(), SwapUsageBytes: number(group.Swap)}
	return stats, nil
}

// cpuUsage tells the CPU time that a VM or a pod, known by its ID, has used, and at
// which rate.
func (s *Server) cpuUsage(id string, now time.Time, group cgroup.Stats) *runtimeapi.CpuUsage {
	usage := &runtimeapi.CpuUsage{Timestamp: now.UnixNano(), UsageCoreNanoSeconds: number(uint64(group.CPU))} //nolint:gosec // not negative
	if rate, known := s.rates.observe(id, now, group.CPU); known {
		usage.UsageNanoCores = number(rate)
	}
	return usage
}

func memoryUsage(now time.Time, group cgroup.Stats) *runtimeapi.MemoryUsage {
	usage := &runtimeapi.MemoryUsage{
		Timestamp:       now.UnixNano(),
		WorkingSetBytes: number(group.WorkingSet),
		UsageBytes:      number(group.Memory),
		RssBytes:        number(group.RSS),
		PageFaults:      number(group.PageFaults),
		MajorPageFaults: number(group.MajorPageFaults),
	}
	if group.MemoryLimit > 0 {
		usage.AvailableBytes = number(group.MemoryLimit - min(group.MemoryLimit, group.WorkingSet))
	}
	return usage
}

func number(value uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: value} }
