package criserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/failpoint"
)

// shutdownRetry is how often the power button is pressed: a guest that still boots
// ignores it.
const shutdownRetry = 3 * time.Second

// killPatience is how long a QEMU whose plug is pulled may take to end by itself: it
// writes out what its disks have cached.
const killPatience = 5 * time.Second

// StopContainer asks a guest to power itself off and pulls the plug at the time-out.
// It may be repeated, and an unknown container is taken for one that was removed
// (CRI, StopContainer).
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if !vm.Running() {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	exited, err := s.shutDown(ctx, vm, time.Duration(req.GetTimeout())*time.Second)
	if err == nil && !exited {
		err = s.kill(ctx, vm)
	}
	if err != nil {
		return nil, fmt.Errorf("stop VM %s: %w", vm.ID, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// shutDown presses the power button until the guest is off or the grace is over, and
// reports whether it is off.
func (s *Server) shutDown(ctx context.Context, vm container, grace time.Duration) (bool, error) {
	if grace <= 0 {
		return false, nil
	}
	exited, forget := s.exits.expect(vm.ID)
	defer forget()
	asked, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	again := time.NewTicker(shutdownRetry)
	defer again.Stop()
	for {
		if err := s.ask(asked, vm); err != nil {
			s.Logger.WarnContext(ctx, "guest cannot be asked to shut down", "container", vm.ID, "err", err)
		}
		failpoint.Hit("StopContainer/asked")
		// The event that tells of the end may have been lost with a connection.
		if done, err := s.settle(ctx, vm.ID); err != nil || done {
			return done, err
		}
		select {
		case <-exited:
			return true, nil
		case <-again.C:
		case <-deadline.C:
			s.Logger.InfoContext(ctx, "guest did not shut down in time, pulling the plug", "container", vm.ID, "grace", grace)
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// ask presses the power button. A QEMU that hangs may keep libvirt from answering: that
// must not keep the plug from being pulled in time.
func (s *Server) ask(asked context.Context, vm container) error {
	asked, cancel := context.WithTimeout(asked, shutdownRetry)
	defer cancel()
	return s.Domains.Shutdown(asked, vm.DomainUUID)
}

// kill pulls the plug of a VM if it runs, and returns when its end is recorded.
func (s *Server) kill(ctx context.Context, vm container) error {
	if !vm.Running() {
		return nil
	}
	calmDown := s.forceLater(ctx, vm)
	err := s.Domains.Destroy(ctx, vm.DomainUUID)
	calmDown()
	if err != nil {
		return err
	}
	failpoint.Hit("StopContainer/destroyed")
	_, err = s.settle(ctx, vm.ID)
	return err
}

// forceLater kills a VM's processes unless the function that it returns is called
// within killPatience. libvirtd asks QEMU itself first, and gives one that hangs ten
// seconds and more; one that hangs with it, for ever.
func (s *Server) forceLater(ctx context.Context, vm container) (calmDown func()) {
	ended := make(chan struct{})
	var forcing sync.WaitGroup
	forcing.Go(func() {
		patience := time.NewTimer(killPatience)
		defer patience.Stop()
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-patience.C:
		}
		s.Logger.WarnContext(ctx, "QEMU does not end, killing it", "container", vm.ID)
		box, err := s.findSandbox(vm.SandboxID)
		if err == nil {
			err = cgroup.End(ctx, s.cgroupOf(box, vm.ID))
		}
		if err != nil {
			s.Logger.ErrorContext(ctx, "QEMU cannot be killed", "container", vm.ID, "err", err)
		}
	})
	return func() {
		close(ended)
		forcing.Wait()
	}
}
