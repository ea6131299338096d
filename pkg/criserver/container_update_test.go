package criserver

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestChanged: an update that names one thing leaves the others alone.
func TestChanged(t *testing.T) {
	t.Parallel()
	pages := []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
	current := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 512, MemoryLimitInBytes: 1 << 30, CpusetCpus: "0-3", CpusetMems: "0", HugepageLimits: pages,
	}
	before := proto.CloneOf(current)
	for name, c := range map[string]struct {
		update *runtimeapi.LinuxContainerResources
		want   func(*runtimeapi.LinuxContainerResources)
	}{
		"nothing":   {nil, func(*runtimeapi.LinuxContainerResources) {}},
		"the CPUs":  {&runtimeapi.LinuxContainerResources{CpusetCpus: "2"}, func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "2" }},
		"the quota": {&runtimeapi.LinuxContainerResources{CpuQuota: 50000}, func(r *runtimeapi.LinuxContainerResources) { r.CpuQuota = 50000 }},
		"no quota":  {&runtimeapi.LinuxContainerResources{CpuQuota: -1}, func(r *runtimeapi.LinuxContainerResources) { r.CpuQuota = -1 }},
		"the same pages": {
			&runtimeapi.LinuxContainerResources{HugepageLimits: pages, CpuShares: 2}, func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = 2 },
		},
	} {
		want := proto.CloneOf(current)
		c.want(want)
		if got := changed(current, c.update); !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if !proto.Equal(current, before) {
		t.Errorf("what was in force has changed to %v", current)
	}
	if limits := cgroupLimits(changed(current, &runtimeapi.LinuxContainerResources{CpusetCpus: "1"})); limits.Quota != 150000 || limits.CPUSet != "1" || limits.MemSet != "0" {
		t.Errorf("limits of the group: %+v", limits)
	}
}
