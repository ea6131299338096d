package criserver

import (
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
)

func TestSizeOf(t *testing.T) {
	for _, c := range []struct {
		name      string
		resources *runtimeapi.LinuxContainerResources
		settings  annotations.Settings
		want      size
	}{
		{"no limits", nil, annotations.Settings{}, size{memory: 1 << 30, vcpus: 1}},
		{"memory limit", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}, annotations.Settings{}, size{memory: 256 << 20, vcpus: 1}},
		{"half a CPU", &runtimeapi.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000}, annotations.Settings{}, size{memory: 1 << 30, vcpus: 1}},
		{"two CPUs", &runtimeapi.LinuxContainerResources{CpuQuota: 200000, CpuPeriod: 100000}, annotations.Settings{}, size{memory: 1 << 30, vcpus: 2}},
		{"a bit over two CPUs", &runtimeapi.LinuxContainerResources{CpuQuota: 200001, CpuPeriod: 100000}, annotations.Settings{}, size{memory: 1 << 30, vcpus: 3}},
		{"quota without period", &runtimeapi.LinuxContainerResources{CpuQuota: 400000}, annotations.Settings{}, size{memory: 1 << 30, vcpus: 4}},
		{"unlimited quota", &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000}, annotations.Settings{}, size{memory: 1 << 30, vcpus: 1}},
		{
			"huge pages", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, HugepageLimits: []*runtimeapi.HugepageLimit{
				{PageSize: "1GB"}, {PageSize: "2MB", Limit: 128 << 20},
			}},
			annotations.Settings{},
			size{memory: 128 << 20, vcpus: 1, pageBytes: 2 << 20},
		},
		{"annotation beats limit", &runtimeapi.LinuxContainerResources{CpuQuota: 400000}, annotations.Settings{VCPUs: 2}, size{memory: 1 << 30, vcpus: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := sizeOf(c.resources, c.settings)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	if _, err := sizeOf(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}, annotations.Settings{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("16 MiB of memory: %v", err)
	}
}
