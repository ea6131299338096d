package proxy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// atOnce is far more than a call that waits for nothing takes, and far less
	// than the patience with a silent runtime.
	atOnce = patience / 2
	// recovery is the promise for a runtime that comes back.
	recovery = time.Second
)

// populate gives both runtimes a pod with a container and waits until the proxy
// has seen them. It returns the VM pod's sandbox and container as callers see them.
func (s *setup) populate(t testing.TB) (sandbox, container string) {
	t.Helper()
	for _, handler := range []string{"", "vm"} {
		sandbox = must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{
			Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod" + handler}, Labels: map[string]string{"kind": "k" + handler}}, RuntimeHandler: handler,
		})).GetPodSandboxId()
		reference := "busybox"
		if handler == "vm" {
			reference = "vm.ambipod.io/debian"
		}
		container = must[*runtimeapi.CreateContainerResponse](t)(s.CreateContainer(ctx(t), &runtimeapi.CreateContainerRequest{
			PodSandboxId: sandbox,
			Config:       &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c" + handler}, Image: image(reference), Labels: map[string]string{"kind": "k" + handler}},
		})).GetContainerId()
		must[*runtimeapi.StartContainerResponse](t)(s.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: container}))
	}
	s.wantWhole(t)
	return sandbox, container
}

// wantWhole checks that the lists have the objects of both runtimes.
func (s *setup) wantWhole(t testing.TB) {
	t.Helper()
	sandboxes := must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})).GetItems()
	if len(sandboxes) != 2 || strings.HasPrefix(sandboxes[0].GetId(), "vm.") || !strings.HasPrefix(sandboxes[1].GetId(), "vm.") {
		t.Errorf("sandboxes %v, want one of each runtime, the default's first", sandboxes)
	}
	containers := must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{}})).GetContainers()
	if len(containers) != 2 || !strings.HasPrefix(containers[1].GetId(), "vm.") || containers[1].GetPodSandboxId() != sandboxes[1].GetId() {
		t.Errorf("containers %v, want one of each runtime", containers)
	}
	for _, c := range containers {
		if c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %s is %s, want running", c.GetId(), c.GetState())
		}
	}
}

// wantUnhurt checks that calls that do not need the VM runtime do not feel its trouble.
func (s *setup) wantUnhurt(t testing.TB) {
	t.Helper()
	s.def.mu.Lock()
	id := s.def.containers[0].GetId()
	s.def.mu.Unlock()
	started := time.Now()
	must[*runtimeapi.VersionResponse](t)(s.Version(ctx(t), &runtimeapi.VersionRequest{}))
	must[*runtimeapi.ContainerStatusResponse](t)(s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: id}))
	must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}}))
	if took := time.Since(started); took > atOnce {
		t.Errorf("calls to the healthy runtime took %v", took)
	}
}

// wantRecovery checks that calls to the VM runtime work again in time.
func (s *setup) wantRecovery(t testing.TB, container string) {
	t.Helper()
	back := time.Now()
	eventually(t, "calls to the VM succeed", func() bool {
		call, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.ContainerStatus(call, &runtimeapi.ContainerStatusRequest{ContainerId: container})
		return err == nil
	})
	if took := time.Since(back); took > recovery {
		t.Errorf("recovery took %v, want at most %v", took, recovery)
	}
	s.wantWhole(t)
}

// The predecessor's worst bug: a dead runtime's pods vanished from the lists, so
// that kubelet made them again.
func TestCrashedRuntime(t *testing.T) {
	s := newSetup(t)
	sandbox, container := s.populate(t)
	s.vm.stop()
	for range 3 {
		started := time.Now()
		s.wantWhole(t)
		if took := time.Since(started); took > atOnce {
			t.Errorf("lists took %v", took)
		}
	}
	s.wantUnhurt(t)
	started := time.Now()
	_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
	wantCode(t, err, codes.Unavailable)
	if text := status.Convert(err).Message(); !strings.Contains(text, "runtime vm does not answer at "+s.vm.socket) {
		t.Errorf("%q does not say which runtime is missing", text)
	}
	_, err = s.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	wantCode(t, err, codes.Unavailable)
	if took := time.Since(started); took > atOnce {
		t.Errorf("errors took %v", took)
	}
	s.vm.start(t)
	s.wantRecovery(t, container)
}

// Filters work on remembered lists as they do on live ones.
func TestFiltersOnRememberedLists(t *testing.T) {
	s := newSetup(t)
	sandbox, container := s.populate(t)
	s.vm.stop()
	containers := func(f *runtimeapi.ContainerFilter) int {
		return len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{Filter: f})).GetContainers())
	}
	sandboxes := func(f *runtimeapi.PodSandboxFilter) int {
		return len(must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{Filter: f})).GetItems())
	}
	running, exited := runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_EXITED
	for name, c := range map[string]struct{ got, want int }{
		"by container":         {containers(&runtimeapi.ContainerFilter{Id: container}), 1},
		"by shortened ID":      {containers(&runtimeapi.ContainerFilter{Id: container[:20]}), 1},
		"by other VM":          {containers(&runtimeapi.ContainerFilter{Id: "vm." + hexID(99)}), 0},
		"by sandbox":           {containers(&runtimeapi.ContainerFilter{PodSandboxId: sandbox}), 1},
		"by label of the VM":   {containers(&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"kind": "kvm"}}), 1},
		"by label of neither":  {containers(&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"kind": "x"}}), 0},
		"running":              {containers(&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: running}}), 2},
		"exited":               {containers(&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: exited}}), 0},
		"ready sandboxes":      {sandboxes(&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{}}), 2},
		"sandboxes by label":   {sandboxes(&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"kind": "kvm"}}), 1},
		"sandbox by ID":        {sandboxes(&runtimeapi.PodSandboxFilter{Id: sandbox}), 1},
		"sandboxes, not ready": {sandboxes(&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d objects, want %d", name, c.got, c.want)
		}
	}
}

// A runtime that hangs costs one list its patience and no other list anything.
func TestHungRuntime(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	release := make(chan struct{})
	s.vm.onCall(func(ctx context.Context, _ string) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	started := time.Now()
	s.wantWhole(t)
	if took := time.Since(started); took > 3*patience {
		t.Errorf("the first lists took %v", took)
	}
	started = time.Now()
	for range 5 {
		s.wantWhole(t)
	}
	if took := time.Since(started); took > atOnce {
		t.Errorf("later lists took %v", took)
	}
	s.wantUnhurt(t)
	call, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	started = time.Now()
	_, err := s.ContainerStatus(call, &runtimeapi.ContainerStatusRequest{ContainerId: container})
	wantCode(t, err, codes.DeadlineExceeded)
	if took := time.Since(started); took > atOnce {
		t.Errorf("the call ended after %v, its deadline was 300 ms", took)
	}
	s.vm.onCall(nil)
	close(release)
	s.wantRecovery(t, container)
	list := s.backend("vm").source(s.proxy.rules.runtime("ListContainers"))
	eventually(t, "lists are live again", func() bool { return !list.isBehind() })
}

// A call that never comes back does not keep a runtime behind that answers
// others again.
func TestOneCallHangsForEver(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.onCall(func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	long, cancel := context.WithTimeout(t.Context(), time.Minute) // as kubelet's: two minutes
	defer cancel()
	must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(long, &runtimeapi.ListContainersRequest{}))
	list := s.backend("vm").source(s.proxy.rules.runtime("ListContainers"))
	if !list.isBehind() {
		t.Fatal("the runtime is not behind")
	}
	s.vm.onCall(nil) // the calls that hang go on hanging
	back := time.Now()
	eventually(t, "lists are live again", func() bool { return !list.isBehind() })
	if took := time.Since(back); took > recovery {
		t.Errorf("recovery took %v", took)
	}
	s.wantRecovery(t, container)
}

// A hung runtime that is killed and comes back is found as fast as any other.
func TestHungAndKilledRuntime(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.onCall(func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	s.wantWhole(t)
	s.vm.stop()
	s.wantWhole(t)
	s.vm.onCall(nil)
	s.vm.start(t)
	s.wantRecovery(t, container)
}

// What a runtime did before it fell silent is in the lists, though no list of
// its own has told: else kubelet would do it again.
func TestSilentRightAfterADeed(t *testing.T) {
	s := newSetup(t)
	_, first := s.populate(t)
	s.vm.onCall(func(ctx context.Context, method string) error {
		if strings.HasPrefix(method, "List") {
			<-ctx.Done()
		}
		return ctx.Err()
	})
	sandbox := must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{
		Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "late", Uid: "u"}, Labels: map[string]string{"l": "late"}}, RuntimeHandler: "vm",
	})).GetPodSandboxId()
	second := must[*runtimeapi.CreateContainerResponse](t)(s.CreateContainer(ctx(t), &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "late"}, Image: image("vm.ambipod.io/debian"), Labels: map[string]string{"l": "late"}},
	})).GetContainerId()
	must[*runtimeapi.StopContainerResponse](t)(s.StopContainer(ctx(t), &runtimeapi.StopContainerRequest{ContainerId: first}))
	for _, when := range []string{"silent", "dead"} {
		states := map[string]runtimeapi.ContainerState{}
		for _, c := range must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers() {
			states[c.GetId()] = c.GetState()
		}
		if len(states) != 3 || states[first] != runtimeapi.ContainerState_CONTAINER_EXITED || states[second] != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Errorf("%s: containers %v, want the first VM exited and the second created", when, states)
		}
		found := must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{
			Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"l": "late"}},
		})).GetItems()
		if len(found) != 1 || found[0].GetId() != sandbox || found[0].GetMetadata().GetUid() != "u" || found[0].GetCreatedAt() == 0 || found[0].GetRuntimeHandler() != "vm" {
			t.Errorf("%s: sandboxes %v, want the new one", when, found)
		}
		s.vm.stop()
	}
	s.vm.onCall(nil)
	s.vm.start(t)
	s.wantRecoveryOf(t, first, 3)
}

// wantRecoveryOf is wantRecovery with another number of containers in the end.
func (s *setup) wantRecoveryOf(t testing.TB, container string, total int) {
	t.Helper()
	eventually(t, "calls to the VM succeed", func() bool {
		_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
		return err == nil
	})
	if got := len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()); got != total {
		t.Errorf("%d containers, want %d", got, total)
	}
}

// Removed objects do not come back from memory.
func TestRemovedObjectsStayAway(t *testing.T) {
	s := newSetup(t)
	sandbox, _ := s.populate(t)
	must[*runtimeapi.RemovePodSandboxResponse](t)(s.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}))
	s.vm.stop()
	if got := len(must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{})).GetItems()); got != 1 {
		t.Errorf("%d sandboxes, want the default's only", got)
	}
	if got := len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()); got != 1 {
		t.Errorf("%d containers, want the default's only", got)
	}
}

// An error that the default itself gives to a list is the answer; another
// runtime's error is not.
func TestErrorsOfLists(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	s.vm.onCall(func(context.Context, string) error { return status.Error(codes.Internal, "broken") })
	s.wantWhole(t)
	if text := s.log.String(); !strings.Contains(text, "runtime fails to list") || strings.Count(text, "runtime fails to list") > 2 {
		t.Error("the log must tell about the failing lists, once for each")
	}
	s.def.onCall(func(context.Context, string) error { return status.Error(codes.Internal, "default broken") })
	_, err := s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
	if s := status.Convert(err); s.Code() != codes.Internal || s.Message() != "default broken" {
		t.Errorf("error %v, want the default's own", err)
	}
}

// A caller with a short deadline still gets a whole list from memory in time,
// and does not make the runtime look late to the others.
func TestListBeatsTheCallersDeadline(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	s.vm.onCall(func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	short, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	list, err := s.ListContainers(short, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != 2 {
		t.Errorf("%v, %v, want both containers", list.GetContainers(), err)
	}
	if s.backend("vm").source(s.proxy.rules.runtime("ListContainers")).isBehind() {
		t.Error("a short deadline of one caller made the runtime late for all")
	}
}

// Two hundred callers at once while a runtime comes and goes: nobody ever gets a
// list with an object missing.
func TestListsUnderFire(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	stop := make(chan struct{})
	failures := make(chan string, 1000)
	done := make(chan struct{})
	const callers = 20
	for range callers {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				list, err := s.ListContainers(context.Background(), &runtimeapi.ListContainersRequest{})
				if err != nil {
					failures <- err.Error()
				} else if len(list.GetContainers()) != 2 {
					failures <- list.String()
				}
			}
		}()
	}
	for range 5 {
		s.vm.stop()
		pause(t.Context(), 50*time.Millisecond)
		s.vm.start(t)
		pause(t.Context(), 50*time.Millisecond)
	}
	close(stop)
	for range callers {
		<-done
	}
	close(failures)
	for f := range failures {
		t.Error(f)
	}
}

// Announcements reach a runtime that was away, in their last version.
func TestRuntimeConfigIsRetold(t *testing.T) {
	s := newStoppedSetup(t)
	s.def.start(t)
	s.startProxy(t)
	s.waitConnected(t, "containerd")
	for _, cidr := range []string{"10.1.0.0/24", "10.2.0.0/24"} {
		must[*runtimeapi.UpdateRuntimeConfigResponse](t)(s.UpdateRuntimeConfig(ctx(t), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		}))
	}
	told := func(r *testRuntime) []string {
		var cidrs []string
		for _, c := range r.got("UpdateRuntimeConfig") {
			cidrs = append(cidrs, c.message.(*runtimeapi.UpdateRuntimeConfigRequest).GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
		}
		return cidrs
	}
	if got := told(s.def); !slices.Equal(got, []string{"10.1.0.0/24", "10.2.0.0/24"}) {
		t.Errorf("the default was told %q", got)
	}
	for range 2 {
		s.vm.start(t)
		eventually(t, "the VM runtime is told", func() bool {
			got := told(s.vm)
			return len(got) > 0 && !slices.Contains(got, "10.1.0.0/24")
		})
		s.vm.stop()
		s.vm.mu.Lock()
		s.vm.requests = nil
		s.vm.mu.Unlock()
	}
}
