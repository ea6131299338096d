package criserver

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/network"
)

// Each value must fit its descriptor: kubelet drops, in silence, what does not.
func TestMetricsFitTheirDescriptors(t *testing.T) {
	answer, err := (&Server{}).ListMetricDescriptors(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range answer.GetDescriptors() {
		if labels[d.GetName()] > 0 {
			t.Errorf("%s is described twice", d.GetName())
		}
		labels[d.GetName()] = len(d.GetLabelKeys())
		if d.GetHelp() == "" {
			t.Errorf("%s has no help", d.GetName())
		}
	}
	base := make([]string, len(baseLabels))
	r := reading{resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1}, group: cgroup.Stats{PageFaults: 7}}
	metrics := measure(nil, vmMetrics, r, base)
	for _, m := range failureMetrics {
		metrics = measure(metrics, []metric[cgroup.Stats]{m.metric}, r.group, with(base, m.failure, "container"))
	}
	metrics = measure(metrics, spaceMetrics, space{}, with(base, "/"))
	metrics = measure(metrics, nicMetrics, network.Counters{}, with(base, "eth0"))
	metrics = append(metrics, innerMetrics(figure{Stats: libvirttools.Stats{Disks: []libvirttools.DiskStats{{Target: "sda"}}, Guest: &libvirttools.GuestMemory{}}}, base)...)
	seen := map[string]bool{}
	for _, m := range metrics {
		seen[m.GetName()] = true
		if len(m.GetLabelValues()) != labels[m.GetName()] {
			t.Errorf("%s has %d labels, its descriptor %d", m.GetName(), len(m.GetLabelValues()), labels[m.GetName()])
		}
		if m.GetName() == "container_spec_memory_limit_bytes" && m.GetValue().GetValue() != 0 {
			t.Errorf("no limit is the limit %d", m.GetValue().GetValue())
		}
	}
	for name := range labels {
		if !seen[name] {
			t.Errorf("%s is described and never measured", name)
		}
	}
}
