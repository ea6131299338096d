package criserver

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/ambipod/ambipod/pkg/guestexec"
)

// Exec returns the URL at which a command in a guest has its streams. A guest that
// has no agent is refused here already.
func (s *Server) Exec(ctx context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, fmt.Errorf("no command to run in VM %s: %w", req.GetContainerId(), errdefs.ErrInvalidArgument)
	}
	vm, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.guest(vm).Agent.Ping(ctx); err != nil {
		return nil, err
	}
	return s.access.streams.Exec(req)
}

// Exec runs the command of a connection.
func (r streamRuntime) Exec(ctx context.Context, id string, argv []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error { //nolint:revive // the interface is not ours
	vm, err := r.server.runningContainer(id)
	if err != nil {
		return err
	}
	command := guestexec.Command{Argv: argv, TTY: tty, Stdin: in, Resize: sizes(ctx, resize)}
	// A nil stream must not become an interface that is not nil.
	if out != nil {
		command.Stdout = out
	}
	if errOut != nil {
		command.Stderr = errOut
	}
	code, err := r.server.execute(ctx, vm, command)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
	}
	return err
}
