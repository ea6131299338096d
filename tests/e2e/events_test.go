//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// TestEventsFollowGuests: what guests do, and what becomes of VMs while a daemon is
// down, reaches subscribers; what is known of a VM's life survives restarts.
func TestEventsFollowGuests(t *testing.T) {
	n := criNode(t)
	serveSector(t, n)
	c := dial(t, n)
	stays, ends, killed := c.run(t, sectorKind), c.run(t, sectorKind), c.run(t, sectorKind)
	for _, p := range []*pod{stays, ends, killed} {
		p.waitReady(t)
	}
	started, err := stays.status(deadline(t))
	must(t, err)
	events := subscribe(t, stays)

	screen := ends.attach(t)
	go func() { _, _ = io.Copy(io.Discard, screen.screen) }()
	screen.typeIn(bootsector.PowerOff)
	end := events.wait(t, ends, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if end.GetReason() != "Completed" || end.GetExitCode() != 0 || end.GetFinishedAt() < end.GetStartedAt() {
		t.Errorf("the event of a guest that powered itself off has %v", end)
	}

	must(t, n.Kill(deadline(t), node.Libvirtd))
	found, err := n.ProcessesNaming("guest=ambipod-" + strings.TrimPrefix(killed.id, "vm.")[:12])
	must(t, err)
	if len(found) != 1 {
		t.Fatalf("the VM has %d QEMU processes", len(found))
	}
	must(t, found[0].Kill(deadline(t)))
	must(t, n.StartDaemon(deadline(t), node.Libvirtd))
	end2 := events.wait(t, killed, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if end2.GetReason() != "Error" || end2.GetExitCode() == 0 || end2.GetFinishedAt() < end2.GetStartedAt() {
		t.Errorf("the event of a QEMU that died while libvirtd was down has %v", end2)
	}

	must(t, n.Kill(deadline(t), node.VMRuntime))
	must(t, n.StartDaemon(deadline(t), node.VMRuntime))
	for p, want := range map[*pod]*runtimeapi.ContainerStatus{stays: started, ends: end, killed: end2} {
		eventually(t, "vmruntime serves again", func(ctx context.Context) error {
			got, err := p.status(ctx)
			if err != nil {
				return err
			}
			if got.GetStartedAt() != want.GetStartedAt() || got.GetFinishedAt() != want.GetFinishedAt() || got.GetReason() != want.GetReason() || got.GetState() != want.GetState() {
				t.Errorf("after restarts the VM is %v, was %v", got, want)
			}
			return nil
		})
	}
	// The subscription outlives vmruntime.
	stays.removeAtEnd(t)
	events.wait(t, stays, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
}

// subscription has the events since it was made.
type subscription chan *runtimeapi.ContainerEventResponse

// subscribe returns when events arrive: p's pod gets containers, which are removed
// again, until the creation of one is told.
func subscribe(t *testing.T, p *pod) subscription {
	t.Helper()
	stream, err := p.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	must(t, err)
	events := make(subscription, 1000)
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		for {
			event, err := stream.Recv()
			if err != nil {
				return // the test is over, or waits in vain
			}
			events <- event
		}
	}()
	other := &pod{client: p.client, config: podConfig(t, p.n, p.kind), container: containerConfig(p.kind), kind: p.kind}
	t.Cleanup(func() { other.removeAtEnd(t) })
	box, err := p.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: other.config, RuntimeHandler: p.kind.handler})
	must(t, err)
	other.sandboxID = box.GetPodSandboxId()
	eventually(t, "events arrive", func(ctx context.Context) error {
		other.create(t) //nolint:contextcheck // it has the test's own
		if _, err := p.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: other.id}); err != nil {
			return err
		}
		soon := time.NewTimer(time.Second)
		defer soon.Stop()
		for {
			select {
			case event := <-events:
				if event.GetContainerId() == other.id && event.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT {
					return nil
				}
			case <-soon.C:
				return errors.New("the creation of a container is not told")
			}
		}
	})
	return events
}

// wait waits for an event of a pod's VM and returns the VM's status in it.
func (s subscription) wait(t *testing.T, p *pod, kind runtimeapi.ContainerEventType) (status *runtimeapi.ContainerStatus) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s of VM %s is told", kind, p.id), func(context.Context) error {
		for {
			select {
			case event := <-s:
				if event.GetContainerId() != p.id || event.GetContainerEventType() != kind {
					continue
				}
				if event.GetPodSandboxStatus().GetId() != p.sandboxID {
					t.Errorf("the event has the pod %v", event.GetPodSandboxStatus())
				}
				for _, each := range event.GetContainersStatuses() {
					if each.GetId() == p.id {
						status = each
					}
				}
				return nil
			default:
				return errors.New("it is not")
			}
		}
	})
	return status
}
