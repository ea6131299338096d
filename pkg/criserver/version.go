package criserver

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	runtimeName = "ambipod"
	criVersion  = "v1"
	// kubeletAPIVersion is what kubelet insists on (cri-client, remote_runtime.go).
	kubeletAPIVersion = "0.1.0"
)

// Version says who answers, and which CRI it speaks.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.Options.Version,
		RuntimeApiVersion: criVersion,
	}, nil
}
