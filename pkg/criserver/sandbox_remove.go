package criserver

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/failpoint"
)

// RemovePodSandbox removes a sandbox with all of its VMs, running or not. It may be
// repeated (CRI, RemovePodSandbox).
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.withSandbox(ctx, req.GetPodSandboxId(), "remove", s.removeSandbox)
}

// removeSandbox needs the sandbox's lock.
func (s *Server) removeSandbox(ctx context.Context, box sandbox) error {
	if err := s.stopSandbox(ctx, box); err != nil {
		return err
	}
	failpoint.Hit("RemovePodSandbox/stopped")
	vms, err := s.containersOf(box.ID)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if err := s.removeContainer(ctx, vm); err != nil {
			return err
		}
	}
	failpoint.Hit("RemovePodSandbox/machines-removed")
	if err := s.Records.Sandboxes.Delete(box.ID); err != nil {
		return err
	}
	s.rates.forget(box.ID)
	failpoint.Hit("RemovePodSandbox/record-deleted")
	s.events.publish(&runtimeapi.ContainerEventResponse{
		ContainerId:        box.ID,
		ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
		PodSandboxStatus:   sandboxStatus(box, nil),
	})
	return nil
}
