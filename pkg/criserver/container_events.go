package criserver

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBacklog is how many events a subscriber may lag behind before it is cut off.
const eventBacklog = 1000

// GetContainerEvents streams what happens to VMs from now on. A subscriber that does
// not keep up gets an error and must list and subscribe anew: events are never
// dropped in silence.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	subscription := s.events.subscribe()
	defer s.events.unsubscribe(subscription)
	for {
		select {
		case event, open := <-subscription:
			if !open {
				return fmt.Errorf("subscriber lags more than %d events behind, list and subscribe anew: %w", eventBacklog, errdefs.ErrResourceExhausted)
			}
			if err := stream.Send(event); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// publish tells subscribers what happened to a VM, with the whole state of its pod:
// kubelet's cache is replaced by it (KEP-3386).
func (s *Server) publish(sandboxID, containerID string, kind runtimeapi.ContainerEventType) {
	event := &runtimeapi.ContainerEventResponse{ContainerId: containerID, ContainerEventType: kind}
	if box, err := s.findSandbox(sandboxID); err == nil {
		if result, err := networkResult(box.Sandbox); err == nil {
			event.PodSandboxStatus = sandboxStatus(box, result)
		}
	}
	if vms, err := s.containersOf(sandboxID); err == nil {
		event.ContainersStatuses = s.statuses(vms)
	}
	s.events.publish(event)
}

// eventHub hands each event to all subscribers without waiting for any.
type eventHub struct {
	mu          sync.Mutex // guards subscribers; also orders events
	subscribers map[chan *runtimeapi.ContainerEventResponse]struct{}
}

func newEventHub() *eventHub {
	return &eventHub{subscribers: map[chan *runtimeapi.ContainerEventResponse]struct{}{}}
}

func (h *eventHub) subscribe() chan *runtimeapi.ContainerEventResponse {
	h.mu.Lock()
	defer h.mu.Unlock()
	subscription := make(chan *runtimeapi.ContainerEventResponse, eventBacklog)
	h.subscribers[subscription] = struct{}{}
	return subscription
}

func (h *eventHub) unsubscribe(subscription chan *runtimeapi.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subscribers, subscription)
}

func (h *eventHub) publish(event *runtimeapi.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	event.CreatedAt = time.Now().UnixNano()
	for subscription := range h.subscribers {
		select {
		case subscription <- event:
		default:
			close(subscription)
			delete(h.subscribers, subscription)
		}
	}
}
