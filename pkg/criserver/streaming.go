package criserver

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync is not built yet.
func (s *Server) ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return nil, notBuilt("exec", "use SSH to the pod's IP, or HTTP and TCP probes")
}

// Exec is not built yet.
func (s *Server) Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return nil, notBuilt("exec", "use SSH to the pod's IP")
}

// Attach is not built yet.
func (s *Server) Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return nil, notBuilt("attach", "read the console with logs")
}

// PortForward is not built yet.
func (s *Server) PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return nil, notBuilt("port-forward", "connect to the pod's IP")
}

func notBuilt(what, instead string) error {
	return fmt.Errorf("%s does not work with VM pods yet, %s: %w", what, instead, errdefs.ErrNotImplemented)
}
