package criserver

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ReopenContainerLog opens a VM's log anew after kubelet has rotated it away.
func (s *Server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if !vm.Running() {
		return nil, fmt.Errorf("VM %s does not run, its log is complete: %w", vm.ID, errdefs.ErrFailedPrecondition)
	}
	if err := s.consoles.reopen(ctx, vm.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
