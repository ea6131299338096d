package criserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
)

// scriptedNetwork gives sandboxes what the test says.
type scriptedNetwork struct {
	Network

	setup    func(ctx context.Context, pod network.Pod) error
	teardown func(pod network.Pod) error

	mu     sync.Mutex // guards what follows
	torn   []string   // pods, by name
	sweeps int        // that had the time for it
}

func (n *scriptedNetwork) Setup(ctx context.Context, pod network.Pod) (*network.Result, error) {
	if n.setup != nil {
		if err := n.setup(ctx, pod); err != nil {
			return nil, err
		}
	}
	return &network.Result{}, nil
}

func (n *scriptedNetwork) Teardown(_ context.Context, pod network.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.torn = append(n.torn, pod.Name)
	if n.teardown != nil {
		return n.teardown(pod)
	}
	return nil
}

func (n *scriptedNetwork) tornDown() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.torn)
}

func (n *scriptedNetwork) Disconnect(string) error          { return nil }
func (n *scriptedNetwork) Status(ctx context.Context) error { return ctx.Err() }

func (n *scriptedNetwork) Sweep(ctx context.Context, _ map[string]bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sweeps++
	return nil
}

// noDomains is a libvirtd without VMs. One that hangs says nothing until its caller has
// gone.
type noDomains struct {
	Domains

	hangs bool
	looks int // how often it was asked what there is
}

func (d *noDomains) Owned(ctx context.Context) ([]libvirttools.OwnedDomain, error) {
	d.looks++
	return nil, d.answer(ctx)
}

func (d *noDomains) State(ctx context.Context, uuid string) (libvirttools.State, error) {
	if err := d.answer(ctx); err != nil {
		return libvirttools.State{}, err
	}
	return libvirttools.State{}, fmt.Errorf("domain %s: %w", uuid, errdefs.ErrNotFound)
}

func (d *noDomains) answer(ctx context.Context) error {
	if d.hangs {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (d *noDomains) Check(ctx context.Context) (libvirttools.Info, error) {
	return libvirttools.Info{}, d.answer(ctx)
}

// lifeServer can make and remove sandboxes.
func lifeServer(t *testing.T, n Network, d Domains) *Server {
	t.Helper()
	s := serverWithRecords(t)
	s.Network, s.Domains, s.Logger = n, d, slog.New(slog.DiscardHandler)
	s.locks, s.events, s.rates = newKeyedMutex(), newEventHub(), newRates()
	s.making, s.overdue, s.hurry = newIDSet(), newIDSet(), make(chan struct{}, 1)
	return s
}

func runRequest(pod string) *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: pod, Namespace: "shop", Uid: "uid-" + pod},
	}}
}

// TestLeftoverKeepsNobodyWaiting: a sandbox whose RunPodSandbox died, and whose network
// the plugins refuse to take back, is in nobody's way, and is removed when they do.
func TestLeftoverKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	refused := errors.New("plugin is away")
	networks, domains := &scriptedNetwork{teardown: func(network.Pod) error { return refused }}, &noDomains{}
	s := lifeServer(t, networks, domains)
	encoded, err := proto.Marshal(runRequest("dead").GetConfig())
	if err != nil {
		t.Fatal(err)
	}
	left := metadata.Sandbox{ID: "left", Config: encoded, State: metadata.SandboxCreating}
	if err := s.Records.Sandboxes.Create(left.ID, left); err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"other", "dead"} {
		if _, err := s.RunPodSandbox(t.Context(), runRequest(pod)); err != nil {
			t.Errorf("pod %s: %v", pod, err)
		}
	}
	if s.tidy(t.Context()) || !s.overdue.has(left.ID) {
		t.Error("the leftover is forgotten")
	}
	networks.teardown = nil
	if !s.tidy(t.Context()) {
		t.Error("the leftover is still there when its network has gone")
	}
	boxes, err := s.sandboxes()
	if err != nil || len(boxes) != 2 {
		t.Errorf("sandboxes %v, %v; want the two that were made", boxes, err)
	}
}

// TestStopOfASandboxInTheMaking: kubelet gives RunPodSandbox up when a pod is deleted, and
// stops what it has seen of it in a list. Plugins must not work on both at once.
func TestStopOfASandboxInTheMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		networks := &scriptedNetwork{setup: func(ctx context.Context, _ network.Pod) error {
			<-ctx.Done()
			time.Sleep(2 * time.Second) // as a plugin takes to end
			return ctx.Err()
		}}
		s := lifeServer(t, networks, &noDomains{})
		ctx, giveUp := context.WithCancel(t.Context())
		made, stopped := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := s.RunPodSandbox(ctx, runRequest("web"))
			made <- err
		}()
		synctest.Wait()
		list, err := s.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(list.GetItems()) != 1 {
			t.Fatalf("sandboxes %v, %v", list, err)
		}
		go func() {
			_, err := s.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: list.GetItems()[0].GetId()})
			stopped <- err
		}()
		synctest.Wait()
		giveUp()
		synctest.Wait()
		if torn := networks.tornDown(); len(torn) > 0 {
			t.Error("the network is torn down while it is being made")
		}
		if err := <-made; !errors.Is(err, context.Canceled) {
			t.Errorf("RunPodSandbox that was given up: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("StopPodSandbox of what does not exist any more: %v", err)
		}
	})
}

// TestFailuresDoNotPutOffTidying: calls that go on failing, as while addresses have run
// out, must not keep back the sweep that would free some.
func TestFailuresDoNotPutOffTidying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		domains := &noDomains{}
		s := lifeServer(t, &scriptedNetwork{}, domains)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Maintain(ctx) }()
		const seconds = 30
		for range seconds {
			s.tidySoon()
			time.Sleep(time.Second)
		}
		cancel()
		<-ended
		if domains.looks < seconds/int(tidyInterval/time.Second)-1 {
			t.Errorf("%d s of failures: tidied %d times", seconds, domains.looks)
		}
	})
}

// TestNetworksAreSweptWithoutLibvirtd: addresses that nobody has are given back whether or
// not libvirtd answers, of which sandboxes need nothing.
func TestNetworksAreSweptWithoutLibvirtd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		networks := &scriptedNetwork{}
		s := lifeServer(t, networks, &noDomains{hangs: true})
		if err := s.Records.Containers.Create("vm", metadata.Container{ID: "vm", Defined: true}); err != nil {
			t.Fatal(err)
		}
		s.overdue.enter("vm")
		ctx, cancel := context.WithTimeout(t.Context(), tidyTimeout)
		defer cancel()
		if s.tidy(ctx) || !s.overdue.has("vm") {
			t.Error("a VM counts as recovered of which nothing is known")
		}
		if networks.sweeps != 1 {
			t.Errorf("networks were swept %d times, want once", networks.sweeps)
		}
	})
}

// TestStatusOfAHungLibvirtd blames libvirt and nothing else.
func TestStatusOfAHungLibvirtd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := lifeServer(t, &scriptedNetwork{}, &noDomains{hangs: true})
		answer, err := s.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, condition := range answer.GetStatus().GetConditions() {
			if want := condition.GetType() == runtimeapi.NetworkReady; condition.GetStatus() != want {
				t.Errorf("%s is %v: %s", condition.GetType(), condition.GetStatus(), condition.GetMessage())
			}
		}
	})
}

// TestUpdatesDoNotUndoEachOther: kubelet's CPU manager and a pod's resize come at any time.
func TestUpdatesDoNotUndoEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := lifeServer(t, nil, nil)
		if err := s.Records.Containers.Create("vm", metadata.Container{ID: "vm", Defined: true, VCPUs: 2}); err != nil {
			t.Fatal(err)
		}
		unlock, err := s.locks.lock(t.Context(), "vm")
		if err != nil {
			t.Fatal(err)
		}
		var updates sync.WaitGroup
		for _, wanted := range []*runtimeapi.LinuxContainerResources{{CpusetCpus: "1"}, {CpuShares: 512}, {CpuQuota: 150_000, CpuPeriod: 100_000}} {
			updates.Go(func() {
				if _, err := s.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "vm", Linux: wanted}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // all have seen the VM as it was
		unlock()
		updates.Wait()
		vm, err := s.findContainer("vm")
		if err != nil {
			t.Fatal(err)
		}
		got, err := resourcesOf(vm)
		want := &runtimeapi.LinuxContainerResources{CpusetCpus: "1", CpuShares: 512, CpuQuota: 150_000, CpuPeriod: 100_000}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("in force: %v, %v; want %v", got, err, want)
		}
	})
}

// noImages is a store without any.
type noImages struct{ Images }

func (noImages) Resolve(name string) (imagestore.Image, error) {
	return imagestore.Image{}, fmt.Errorf("image %s: %w", name, errdefs.ErrNotFound)
}

// TestUnfinishedVMIsNoPodsYet: statuses and events, which replace what kubelet knows of a
// pod, leave out what ListContainers does.
func TestUnfinishedVMIsNoPodsYet(t *testing.T) {
	t.Parallel()
	s := testServer()
	s.Images = noImages{}
	vms := []container{testVM(), testVM()}
	vms[1].Defined = true
	if got := s.statuses(vms); len(got) != 1 {
		t.Errorf("%d statuses, want that of the VM that is complete", len(got))
	}
}
