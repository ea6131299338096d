package criserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/metadata"
)

// forwardDialTimeout bounds the wait for a guest to accept a connection.
const forwardDialTimeout = 10 * time.Second

// PortForward returns the URL at which connections to a guest's ports are made.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := s.readySandbox(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return s.access.streams.PortForward(req)
}

func (s *Server) readySandbox(id string) (sandbox, error) {
	box, err := s.findSandbox(id)
	if err != nil {
		return sandbox{}, err
	}
	if box.State != metadata.SandboxReady {
		return sandbox{}, fmt.Errorf("sandbox %s of pod %s is not ready: %w", box.ID, podName(box.config), errdefs.ErrFailedPrecondition)
	}
	return box, nil
}

// PortForward connects a stream with a port of the guest. The guest is dialled from
// the node, as any client does: the pod's namespace has the pod's address itself.
func (r streamRuntime) PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error {
	box, err := r.server.readySandbox(sandboxID)
	if err != nil {
		return err
	}
	result, err := networkResult(box.Sandbox)
	if err != nil {
		return err
	}
	connection, err := dialFirst(ctx, addresses(result), port)
	if err != nil {
		return fmt.Errorf("port %d of pod %s does not answer, a service in a VM must listen on the pod's address and not only on the guest's loopback: %w",
			port, podName(box.config), err)
	}
	return forward(ctx, connection, stream)
}

// dialFirst connects to the first of the addresses that answers.
func dialFirst(ctx context.Context, addresses []string, port int32) (net.Conn, error) {
	if len(addresses) == 0 {
		return nil, fmt.Errorf("it has no address: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, forwardDialTimeout)
	defer cancel()
	var failures error
	for i, address := range addresses {
		// Those that come after get their share of the time.
		dialer := net.Dialer{Timeout: forwardDialTimeout / time.Duration(len(addresses)-i)}
		connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			return connection, nil
		}
		failures = errors.Join(failures, err)
	}
	return nil, failures
}

// forward copies both ways until the guest has closed its direction, or the context
// ends. The client's end is passed on, its last read ends with the stream.
func forward(ctx context.Context, connection net.Conn, stream io.ReadWriter) error {
	defer func() { _ = connection.Close() }()
	go func() {
		_, _ = io.Copy(connection, stream)
		if half, ok := connection.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	answered := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, connection)
		answered <- err
	}()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return nil // the client has gone
	}
}
