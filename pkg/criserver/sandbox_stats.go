package criserver

import (
	"context"
	"path"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
)

// PodSandboxStats tells what a pod uses: its VMs, its control group and its network.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	box, err := s.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	vms, err := s.containersOf(box.ID)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(ctx, box, vms)}, nil
}

// ListPodSandboxStats lists the use of ready pods that a filter lets pass. What cannot
// be read is left out and reported.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	census, err := s.census()
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, box := range census.boxes {
		if sandboxState(box.State) != runtimeapi.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(box.ID, req.GetFilter().GetId()) ||
			!matchesLabels(req.GetFilter().GetLabelSelector(), box.config.GetLabels()) {
			continue
		}
		response.Stats = append(response.Stats, s.podStats(ctx, box, census.vms[box.ID]))
	}
	return response, nil
}

// podStats reads what it can of a pod's use: a VM that vanishes meanwhile must not
// take the pod's other numbers with it.
func (s *Server) podStats(ctx context.Context, box sandbox, vms []container) *runtimeapi.PodSandboxStats {
	now := time.Now()
	pod := &runtimeapi.LinuxPodSandboxStats{Network: s.networkUsage(ctx, box, now)}
	for _, vm := range vms {
		if !vm.Running() {
			continue
		}
		if stats := s.statsIfAny(ctx, box, vm); stats != nil {
			pod.Containers = append(pod.Containers, stats)
		}
	}
	if total, err := s.podGroupStats(box, vms); err != nil {
		s.Logger.WarnContext(ctx, "no statistics", "pod", podName(box.config), "err", err)
	} else {
		pod.Cpu = s.cpuUsage(box.ID, now, total)
		pod.Memory = memoryUsage(now, total)
		pod.Process = &runtimeapi.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: number(total.Processes)}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id:          box.ID,
			Metadata:    box.config.GetMetadata(),
			Labels:      box.config.GetLabels(),
			Annotations: box.config.GetAnnotations(),
		},
		Linux: pod,
	}
}

// podGroupStats reads the pod's control group, which goes on counting when a VM is
// restarted. Where kubelet has made none for the pod alone, as for pods that people
// make by hand, it is that of the pod's VM.
func (s *Server) podGroupStats(box sandbox, vms []container) (cgroup.Stats, error) {
	if parent := cgroup.Parent(box.config.GetLinux().GetCgroupParent()); isOfPod(parent, box.config.GetMetadata().GetUid()) {
		return cgroup.Read(parent)
	}
	for _, vm := range vms {
		if vm.Running() {
			return cgroup.Read(s.cgroupOf(box, vm.ID))
		}
	}
	return cgroup.Stats{}, nil
}

// isOfPod tells whether a group is named after the pod, as kubelet names it; systemd's
// names have no dashes to spare.
func isOfPod(group, uid string) bool {
	name := strings.TrimSuffix(path.Base(group), ".slice")
	return uid != "" && (strings.HasSuffix(name, "pod"+uid) || strings.HasSuffix(name, "pod"+strings.ReplaceAll(uid, "-", "_")))
}

// networkUsage is nil when the pod has lost its network.
func (s *Server) networkUsage(ctx context.Context, box sandbox, now time.Time) *runtimeapi.NetworkUsage {
	counters, err := s.Network.Stats(box.ID)
	if err != nil {
		s.Logger.WarnContext(ctx, "no statistics", "pod", podName(box.config), "err", err)
		return nil
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: now.UnixNano()}
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
	return usage
}
