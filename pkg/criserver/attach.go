package criserver

import (
	"context"
	"io"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ambipod/ambipod/pkg/console"
)

// Attach returns the URL at which a VM's serial console is.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := s.runningContainer(req.GetContainerId()); err != nil {
		return nil, err
	}
	return s.access.streams.Attach(req)
}

// Attach connects a connection with the serial console. A serial line has no size,
// and its output is one stream: errors are among it.
func (r streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, _ io.WriteCloser, tty bool, _ <-chan remotecommand.TerminalSize) error { //nolint:revive // the interface is not ours
	vm, err := r.server.runningContainer(id)
	if err != nil {
		return err
	}
	client := console.Client{In: in, Detach: tty}
	if out != nil {
		client.Out = out
	}
	return r.server.access.consoles.Attach(ctx, r.server.Layout.VM(vm.ID).ConsoleSocket(), client)
}
