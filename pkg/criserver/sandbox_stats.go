package criserver

import (
	"context"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStats tells what a pod uses: the sum of its VMs, and its network.
func (s *Server) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	box, err := s.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	stats, err := s.podStats(box)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, nil
}

// ListPodSandboxStats lists the use of ready pods that a filter lets pass; a pod
// whose use cannot be read is left out and reported.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	all, err := s.sandboxes()
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, box := range all {
		if sandboxState(box.State) != runtimeapi.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(box.ID, req.GetFilter().GetId()) ||
			!matchesLabels(req.GetFilter().GetLabelSelector(), box.config.GetLabels()) {
			continue
		}
		stats, err := s.podStats(box)
		if err != nil {
			s.Logger.WarnContext(ctx, "no statistics", "pod", podName(box.config), "err", err)
			continue
		}
		response.Stats = append(response.Stats, stats)
	}
	return response, nil
}

func (s *Server) podStats(box sandbox) (*runtimeapi.PodSandboxStats, error) {
	vms, err := s.containersOf(box.ID)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	cpu := &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: number(0)}
	memory := &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: number(0), UsageBytes: number(0), RssBytes: number(0), PageFaults: number(0), MajorPageFaults: number(0)}
	pod := &runtimeapi.LinuxPodSandboxStats{Cpu: cpu, Memory: memory}
	for _, vm := range vms {
		if !vm.Running() {
			continue
		}
		stats, err := s.stats(vm)
		if err != nil {
			return nil, err
		}
		pod.Containers = append(pod.Containers, stats)
		cpu.UsageCoreNanoSeconds.Value += stats.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		memory.WorkingSetBytes.Value += stats.GetMemory().GetWorkingSetBytes().GetValue()
		memory.UsageBytes.Value += stats.GetMemory().GetUsageBytes().GetValue()
		memory.RssBytes.Value += stats.GetMemory().GetRssBytes().GetValue()
		memory.PageFaults.Value += stats.GetMemory().GetPageFaults().GetValue()
		memory.MajorPageFaults.Value += stats.GetMemory().GetMajorPageFaults().GetValue()
	}
	if pod.Network, err = s.networkUsage(box.ID, now); err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          box.ID,
			Metadata:    box.config.GetMetadata(),
			Labels:      box.config.GetLabels(),
			Annotations: box.config.GetAnnotations(),
		},
		Linux: pod,
	}, nil
}

func (s *Server) networkUsage(sandboxID string, now int64) (*runtimeapi.NetworkUsage, error) {
	counters, err := s.Network.Stats(sandboxID)
	if err != nil {
		return nil, err
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: now}
	for i, counter := range counters {
		nic := &runtimeapi.NetworkInterfaceUsage{
			Name:    counter.Name,
			RxBytes: number(counter.RxBytes), RxErrors: number(counter.RxErrors),
			TxBytes: number(counter.TxBytes), TxErrors: number(counter.TxErrors),
		}
		if i == 0 {
			usage.DefaultInterface = nic
			continue
		}
		usage.Interfaces = append(usage.Interfaces, nic)
	}
	return usage, nil
}
