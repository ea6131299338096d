package proxy

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The answer to a filtered list is not all that a runtime has. A filter may be
// encoded as an empty message: a state of "ready" is the number 0.
func TestFilteredListsAreNotRemembered(t *testing.T) {
	s := newSetup(t)
	sandbox, _ := s.populate(t)
	must[*runtimeapi.StopPodSandboxResponse](t)(s.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}))
	all := func(filter *runtimeapi.PodSandboxFilter) int {
		return len(must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{Filter: filter})).GetItems())
	}
	for name, filter := range map[string]*runtimeapi.PodSandboxFilter{
		"ready":        {State: &runtimeapi.PodSandboxStateValue{}},
		"a label":      {LabelSelector: map[string]string{"kind": "none"}},
		"a default ID": {Id: "0000"},
	} {
		before := all(nil)
		all(filter)
		s.vm.stop()
		if after := all(nil); before != 2 || after != 2 {
			t.Errorf("after a list filtered by %s there are %d sandboxes, want 2", name, after)
		}
		s.vm.start(t)
		s.waitConnected(t, "vm")
	}
}

// The bare prefix is nobody's ID. Without it nothing would be left of the
// filter, and that matches everything.
func TestBarePrefixMatchesNothing(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	got := must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{PodSandboxId: "vm."},
	}))
	if len(got.GetContainers()) != 0 {
		t.Errorf("containers %v", got.GetContainers())
	}
	calls := s.vm.got("ListContainers")
	if asked := calls[len(calls)-1].message.(*runtimeapi.ListContainersRequest).GetFilter().GetPodSandboxId(); asked != "vm." {
		t.Errorf("the runtime was asked for sandbox %q", asked)
	}
}

// A request that came in several pieces is read by several goroutines at once.
func TestLargeFilter(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	large := map[string]string{"kind": strings.Repeat("x", 200_000)}
	list := must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: large}}))
	if len(list.GetContainers()) != 0 {
		t.Errorf("containers %v", list.GetContainers())
	}
}
