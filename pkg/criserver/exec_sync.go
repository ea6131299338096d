package criserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/guestexec"
)

// maxSyncOutput is how much output ExecSync returns; the rest is thrown away (CRI,
// ExecSync: 16 MB). kubelet takes no message of more than 16 MiB, both outputs and
// their frame included.
const maxSyncOutput = 16_000_000

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
	code, err := s.execute(ctx, vm, guestexec.Command{Argv: req.GetCmd(), Stdout: &outputs.stdout, Stderr: &outputs.stderr})
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
