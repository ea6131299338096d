package criserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// StopPodSandbox switches a pod's VMs off and gives its network back. It may be
// repeated, and an unknown sandbox is taken for one that was removed (CRI,
// StopPodSandbox: "idempotent, and must not return an error if all relevant
// resources have already been reclaimed").
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.withSandbox(ctx, req.GetPodSandboxId(), "stop", s.stopSandbox)
}

// withSandbox does something to a sandbox under its lock; one that is unknown, or has
// been removed when the lock is free, needs nothing done.
func (s *Server) withSandbox(ctx context.Context, id, verb string, do func(context.Context, sandbox) error) error {
	box, err := s.findSandbox(id)
	if err == nil {
		var unlock func()
		if unlock, err = s.locks.lock(ctx, box.ID); err != nil {
			return err
		}
		defer unlock()
		box, err = s.findSandbox(box.ID)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := do(ctx, box); err != nil {
		return fmt.Errorf("%s sandbox of pod %s: %w", verb, podName(box.config), err)
	}
	return nil
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
	failpoint.Hit("StopPodSandbox/machines-off")
	if err := errors.Join(
		s.Network.Disconnect(box.ID),
		s.Network.Teardown(ctx, networkPod(box.ID, box.config)),
	); err != nil {
		return err
	}
	failpoint.Hit("StopPodSandbox/network-down")
	_, err = s.Records.Sandboxes.Update(box.ID, func(r *metadata.Sandbox) error {
		r.State = metadata.SandboxStopped
		return nil
	})
	failpoint.Hit("StopPodSandbox/recorded")
	return err
}
