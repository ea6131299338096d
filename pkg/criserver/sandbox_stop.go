package criserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/metadata"
)

// StopPodSandbox switches a pod's VMs off and gives its network back. It may be
// repeated, and an unknown sandbox is taken for one that was removed (CRI,
// StopPodSandbox: "idempotent, and must not return an error if all relevant
// resources have already been reclaimed").
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	box, err := s.findSandbox(req.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	unlock, err := s.locks.lock(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.stopSandbox(ctx, box); err != nil {
		return nil, fmt.Errorf("stop sandbox of pod %s: %w", podName(box.config), err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stopSandbox needs the sandbox's lock.
func (s *Server) stopSandbox(ctx context.Context, box sandbox) error {
	vms, err := s.containersOf(box.ID)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if err := s.kill(ctx, vm); err != nil {
			return err
		}
	}
	if err := errors.Join(
		s.Network.Disconnect(box.ID),
		s.Network.Teardown(ctx, networkPod(box.ID, box.config)),
	); err != nil {
		return err
	}
	_, err = s.Records.Sandboxes.Update(box.ID, func(r *metadata.Sandbox) error {
		r.State = metadata.SandboxStopped
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil // removed by another call meanwhile
	}
	return err
}
