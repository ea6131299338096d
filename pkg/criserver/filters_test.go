package criserver

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/metadata"
)

func TestMatchesSandbox(t *testing.T) {
	box := sandbox{
		metadata.Sandbox{ID: "abc123", State: metadata.SandboxReady},
		&runtimeapi.PodSandboxConfig{Labels: map[string]string{"app": "web", "tier": "front"}},
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   bool
	}{
		{"no filter", nil, true},
		{"ID", &runtimeapi.PodSandboxFilter{Id: "abc123"}, true},
		{"shortened ID", &runtimeapi.PodSandboxFilter{Id: "abc"}, true},
		{"other ID", &runtimeapi.PodSandboxFilter{Id: "abd"}, false},
		{"state", &runtimeapi.PodSandboxFilter{State: ready}, true},
		{"other state", &runtimeapi.PodSandboxFilter{State: notReady}, false},
		{"labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "front"}}, true},
		{"one label differs", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "back"}}, false},
		{"a label is missing", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"zone": ""}}, false},
		{"all, one differs", &runtimeapi.PodSandboxFilter{Id: "abc", State: notReady}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := matchesSandbox(c.filter, box); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestContainerStateFollowsFromTimes(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		record metadata.Container
		want   runtimeapi.ContainerState
	}{
		{metadata.Container{}, runtimeapi.ContainerState_CONTAINER_CREATED},
		{metadata.Container{StartedAt: now}, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{metadata.Container{StartedAt: now, FinishedAt: now}, runtimeapi.ContainerState_CONTAINER_EXITED},
	} {
		vm := container{c.record, &runtimeapi.ContainerConfig{}}
		if got := containerState(vm); got != c.want {
			t.Errorf("%+v is %v, want %v", c.record, got, c.want)
		}
		only := &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: c.want}}
		if !matchesContainer(only, vm) {
			t.Errorf("%+v does not match its own state %v", c.record, c.want)
		}
	}
}
