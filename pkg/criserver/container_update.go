package criserver

import (
	"cmp"
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// UpdateContainerResources changes how much CPU time a VM may use. What a guest
// would have to take part in, its memory and number of CPUs, is refused as a whole
// (KEP-1287: all or error, and never by a restart).
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	unlock, err := s.locks.lock(ctx, vm.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if vm, err = s.findContainer(vm.ID); err != nil { // another update may have come first
		return nil, err
	}
	current, err := resourcesOf(vm)
	if err != nil {
		return nil, err
	}
	has := cmp.Or(current.GetMemoryLimitInBytes(), vm.MemoryBytes)
	if limit := req.GetLinux().GetMemoryLimitInBytes(); limit != 0 && limit != has {
		return nil, fmt.Errorf("memory of VM %s cannot be changed from %d to %d bytes while it runs, restart the pod with the new limit: %w",
			vm.ID, has, limit, errdefs.ErrFailedPrecondition)
	}
	wanted := changed(current, req.GetLinux())
	if wanted.GetCpuQuota() > 0 && cores(wanted) > vm.VCPUs {
		return nil, fmt.Errorf("VM %s has %d CPUs and cannot use a limit of %d, restart the pod with the new limit: %w",
			vm.ID, vm.VCPUs, cores(wanted), errdefs.ErrFailedPrecondition)
	}
	if vm.Running() {
		box, err := s.findSandbox(vm.SandboxID)
		if err != nil {
			return nil, err
		}
		if err := cgroup.Update(s.cgroupOf(box, vm.ID), cgroupLimits(wanted)); err != nil {
			return nil, err
		}
	}
	encoded, err := proto.Marshal(wanted)
	if err != nil {
		return nil, fmt.Errorf("encode resources of VM %s: %w", vm.ID, err)
	}
	if _, err := s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.Resources = encoded
		return nil
	}); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// changed is what is in force after an update. A field that is not set stays as it is:
// kubelet's CPU manager names a set of CPUs and nothing else, and its limits must not
// be lost by that.
func changed(current, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	wanted := proto.CloneOf(current)
	proto.Merge(wanted, update)
	if len(update.GetHugepageLimits()) > 0 { // Merge appends lists
		wanted.HugepageLimits = update.GetHugepageLimits()
	}
	return wanted
}
