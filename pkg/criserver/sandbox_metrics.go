package criserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/diskusage"
)

// ListMetricDescriptors tells which metrics ListPodSandboxMetrics has.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	list := describe(nil, vmMetrics, baseLabels)
	list = describe(list, []metric[cgroup.Stats]{failureMetrics[0].metric}, failureLabels)
	list = describe(list, guestMetrics, baseLabels)
	list = describe(list, spaceMetrics, diskLabels)
	list = describe(list, diskMetrics, diskLabels)
	list = describe(list, nicMetrics, nicLabels)
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: list}, nil
}

// ListPodSandboxMetrics measures ready pods and their running VMs, as cAdvisor does
// for containers; kubelet serves that as /metrics/cadvisor (KEP-2371). What cannot be
// read is left out and reported.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	census, err := s.census()
	if err != nil {
		return nil, err
	}
	inner := s.guestFigures(ctx, census)
	response := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, box := range census.boxes {
		if sandboxState(box.State) == runtimeapi.PodSandboxState_SANDBOX_READY {
			response.PodMetrics = append(response.PodMetrics, s.podMetrics(ctx, box, census.vms[box.ID], inner))
		}
	}
	return response, nil
}

// guestFigures asks the QEMUs of all running VMs.
func (s *Server) guestFigures(ctx context.Context, census census) map[string]figure {
	var running []container
	for _, vms := range census.vms {
		for _, vm := range vms {
			if vm.Running() {
				running = append(running, vm)
			}
		}
	}
	return s.figures.look(ctx, running)
}

func (s *Server) podMetrics(ctx context.Context, box sandbox, vms []container, inner map[string]figure) *runtimeapi.PodSandboxMetrics {
	pod := &runtimeapi.PodSandboxMetrics{PodSandboxId: box.ID}
	meta := box.config.GetMetadata()
	labels := []string{meta.GetName(), meta.GetNamespace(), "", box.ID, ""} // no container, no image
	counters, err := s.Network.Stats(box.ID)
	if err != nil {
		s.Logger.WarnContext(ctx, "no metrics of network", "pod", podName(box.config), "err", err)
	}
	for _, nic := range counters {
		pod.Metrics = measure(pod.Metrics, nicMetrics, nic, with(labels, nic.Name))
	}
	for _, vm := range vms {
		if !vm.Running() {
			continue
		}
		metrics, err := s.vmMetrics(box, vm)
		if err != nil {
			s.Logger.WarnContext(ctx, "metrics are missing", "container", vm.ID, "err", err)
		}
		if told, any := inner[vm.ID]; any {
			metrics = append(metrics, innerMetrics(told, s.metricLabels(box, vm))...)
		}
		pod.ContainerMetrics = append(pod.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: vm.ID, Metrics: metrics})
	}
	return pod
}

func (s *Server) metricLabels(box sandbox, vm container) []string {
	pod, image := box.config.GetMetadata(), vm.config.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = s.imageSpec(vm).GetImage()
	}
	return []string{pod.GetName(), pod.GetNamespace(), vm.config.GetMetadata().GetName(), vm.ID, image}
}

// vmMetrics is what the node knows of a VM. The errors are of what is missing in it.
func (s *Server) vmMetrics(box sandbox, vm container) (metrics []*runtimeapi.Metric, failures error) {
	labels := s.metricLabels(box, vm)
	room, err := s.spaceOf(vm)
	if failures = err; err == nil {
		metrics = measure(metrics, spaceMetrics, room, with(labels, s.Layout.VMs()))
	}
	r, err := s.readingOf(box, vm)
	if err != nil {
		return metrics, errors.Join(failures, err)
	}
	metrics = measure(metrics, vmMetrics, r, labels)
	for _, m := range failureMetrics {
		metrics = measure(metrics, []metric[cgroup.Stats]{m.metric}, r.group, with(labels, m.failure, "container"))
	}
	return metrics, failures
}

func (s *Server) readingOf(box sandbox, vm container) (r reading, err error) {
	r = reading{vm: vm, now: time.Now()}
	if r.resources, err = resourcesOf(vm); err != nil {
		return r, err
	}
	group := s.cgroupOf(box, vm.ID)
	if r.group, err = cgroup.Read(group); err != nil {
		return r, err
	}
	r.files, err = cgroup.OpenFiles(group)
	return r, err
}

func (s *Server) spaceOf(vm container) (space, error) {
	usage, err := diskusage.MeasureOwn(s.Layout.VM(vm.ID).Dir)
	if err != nil {
		return space{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Layout.VMs(), &fs); err != nil {
		return space{}, err
	}
	return space{used: usage.Bytes, bytes: fs.Blocks * positive(fs.Bsize), inodes: fs.Files, freeInodes: fs.Ffree}, nil
}

// innerMetrics is what QEMU and the guest told.
func innerMetrics(told figure, labels []string) (metrics []*runtimeapi.Metric) {
	for _, disk := range told.Disks {
		metrics = measure(metrics, diskMetrics, disk, with(labels, disk.Target))
	}
	if told.Guest != nil {
		metrics = measure(metrics, guestMetrics, *told.Guest, labels)
	}
	for _, m := range metrics {
		m.Timestamp = told.at.UnixNano()
	}
	return metrics
}

// with returns labels and more, leaving labels alone.
func with(labels []string, more ...string) []string {
	return append(slices.Clip(labels), more...)
}
