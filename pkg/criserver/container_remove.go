package criserver

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// RemoveContainer removes a VM with its disks, running or not (CRI, RemoveContainer:
// "If the container is running, the container must be forcibly removed"). It may be
// repeated.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removeContainer(ctx, vm); err != nil {
		return nil, fmt.Errorf("remove VM %s: %w", vm.ID, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Server) removeContainer(ctx context.Context, vm container) error {
	if err := s.kill(ctx, vm); err != nil {
		return err
	}
	unlock, err := s.locks.lock(ctx, vm.ID)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.Removing = true
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil // removed by another call meanwhile
	}
	if err != nil {
		return err
	}
	failpoint.Hit("RemoveContainer/marked")
	if err := s.consoles.finish(ctx, vm.ID); err != nil {
		return err
	}
	// A VM that a lost start left running has no record of having started.
	if err := s.Domains.Destroy(ctx, vm.DomainUUID); err != nil {
		return err
	}
	if box, err := s.findSandbox(vm.SandboxID); err == nil {
		if err := cgroup.End(ctx, s.cgroupOf(box, vm.ID)); err != nil {
			return err
		}
	}
	failpoint.Hit("RemoveContainer/cgroup-ended")
	if err := s.destroyVM(ctx, vm); err != nil {
		return err
	}
	failpoint.Hit("RemoveContainer/record-deleted")
	s.rates.forget(vm.ID)
	s.publish(vm.SandboxID, vm.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}
