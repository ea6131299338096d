package criserver

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/diskusage"
	"github.com/ambipod/ambipod/pkg/libvirttools"
)

const (
	// guestPatience bounds the wait for numbers that only QEMU and the guest know. A
	// QEMU that hangs has none.
	guestPatience = 2 * time.Second
	// guestsAtOnce is how many QEMUs are asked at a time.
	guestsAtOnce = 8
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
	inner := s.askGuests(ctx, census)
	response := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, box := range census.boxes {
		if sandboxState(box.State) == runtimeapi.PodSandboxState_SANDBOX_READY {
			response.PodMetrics = append(response.PodMetrics, s.podMetrics(ctx, box, census.vms[box.ID], inner))
		}
	}
	return response, nil
}

// askGuests asks all QEMUs at once for what only they know, by container ID.
func (s *Server) askGuests(ctx context.Context, census census) map[string]libvirttools.Stats {
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	var (
		mu    sync.Mutex // guards known
		known = map[string]libvirttools.Stats{}
		asked errgroup.Group
	)
	asked.SetLimit(guestsAtOnce)
	for _, vms := range census.vms {
		for _, vm := range vms {
			if !vm.Running() {
				continue
			}
			asked.Go(func() error {
				stats, err := s.Domains.Stats(ctx, vm.DomainUUID)
				if err != nil {
					s.Logger.DebugContext(ctx, "QEMU tells no numbers", "container", vm.ID, "err", err)
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				known[vm.ID] = stats
				return nil
			})
		}
	}
	_ = asked.Wait() // none returns an error
	return known
}

func (s *Server) podMetrics(ctx context.Context, box sandbox, vms []container, inner map[string]libvirttools.Stats) *runtimeapi.PodSandboxMetrics {
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
			s.Logger.WarnContext(ctx, "no metrics", "container", vm.ID, "err", err)
			continue
		}
		if stats, told := inner[vm.ID]; told {
			metrics = innerMetrics(metrics, stats, s.metricLabels(box, vm))
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

// vmMetrics is what the node knows of a VM.
func (s *Server) vmMetrics(box sandbox, vm container) ([]*runtimeapi.Metric, error) {
	r := reading{vm: vm, now: time.Now()}
	var err error
	if r.resources, err = resourcesOf(vm); err != nil {
		return nil, err
	}
	group := s.cgroupOf(box, vm.ID)
	if r.group, err = cgroup.Read(group); err != nil {
		return nil, err
	}
	if r.files, err = cgroup.OpenFiles(group); err != nil {
		return nil, err
	}
	room, err := s.spaceOf(vm)
	if err != nil {
		return nil, err
	}
	labels := s.metricLabels(box, vm)
	metrics := measure(nil, vmMetrics, r, labels)
	for _, m := range failureMetrics {
		metrics = measure(metrics, []metric[cgroup.Stats]{m.metric}, r.group, with(labels, m.failure, "container"))
	}
	return measure(metrics, spaceMetrics, room, with(labels, s.Layout.VMs())), nil
}

func (s *Server) spaceOf(vm container) (space, error) {
	usage, err := diskusage.Measure(s.Layout.VM(vm.ID).Dir)
	if err != nil {
		return space{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Layout.VMs(), &fs); err != nil {
		return space{}, err
	}
	return space{used: usage.Bytes, bytes: fs.Blocks * positive(fs.Bsize), inodes: fs.Files, freeInodes: fs.Ffree}, nil
}

// innerMetrics appends what QEMU and the guest told.
func innerMetrics(to []*runtimeapi.Metric, stats libvirttools.Stats, labels []string) []*runtimeapi.Metric {
	for _, disk := range stats.Disks {
		to = measure(to, diskMetrics, disk, with(labels, disk.Target))
	}
	if stats.Guest != nil {
		to = measure(to, guestMetrics, *stats.Guest, labels)
	}
	return to
}

// with returns labels and more, leaving labels alone.
func with(labels []string, more ...string) []string {
	return append(slices.Clip(labels), more...)
}
