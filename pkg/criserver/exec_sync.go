package criserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
)

// maxSyncOutput is how much output ExecSync returns; the rest is thrown away (CRI,
// ExecSync: 16 MB). kubelet takes no message of more than 16 MiB, both outputs and
// their frame included.
const maxSyncOutput = 16_000_000

// bootPatience is how long after a VM's start a command without a time-out waits for
// the guest's agent; bootRetry is how often it is looked for.
const (
	bootPatience = 2 * time.Minute
	bootRetry    = time.Second
)

// ExecSync runs a command in a guest, as exec probes and lifecycle hooks do. When its
// time is up the command is killed and the error is DeadlineExceeded, which kubelet
// takes for a probe that failed.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, fmt.Errorf("no command to run in VM %s: %w", req.GetContainerId(), errdefs.ErrInvalidArgument)
	}
	vm, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(req.GetTimeout()) * time.Second
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	outputs := newCappedBuffers(maxSyncOutput)
	execute := s.execute
	if timeout == 0 {
		execute = s.executeWhenUp
	}
	code, err := execute(ctx, vm, guestexec.Command{Argv: req.GetCmd(), Stdout: &outputs.stdout, Stderr: &outputs.stderr})
	if errors.Is(err, context.DeadlineExceeded) {
		// The class is this one alone, whatever else went wrong on the way.
		return nil, fmt.Errorf("%s (time-out %s): %w", err.Error(), timeout, context.DeadlineExceeded)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{
		Stdout: outputs.stdout.kept.Bytes(), Stderr: outputs.stderr.kept.Bytes(), ExitCode: int32(code), //nolint:gosec // at most 255
	}, nil
}

// executeWhenUp is for postStart hooks, which kubelet runs, without a time-out, as soon
// as it has started the VM: it waits for a guest that still boots.
func (s *Server) executeWhenUp(ctx context.Context, vm container, c guestexec.Command) (int, error) {
	exited, forget := s.exits.expect(vm.ID)
	defer forget()
	again := time.NewTicker(bootRetry)
	defer again.Stop()
	for {
		code, err := s.execute(ctx, vm, c)
		if !errors.Is(err, guestagent.ErrNoAgent) || time.Since(vm.StartedAt) > bootPatience {
			return code, err
		}
		select {
		case <-again.C:
		case <-exited:
			return code, err
		case <-ctx.Done():
			return code, err
		}
	}
}
