package criserver

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainers lists the VMs that a filter lets pass. One that CreateContainer
// still works on is not among them: nobody has its ID yet.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all, err := s.containers()
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListContainersResponse{}
	for _, vm := range all {
		if !vm.Defined || !matchesContainer(req.GetFilter(), vm) {
			continue
		}
		response.Containers = append(response.Containers, &runtimeapi.Container{
			Id:           vm.ID,
			PodSandboxId: vm.SandboxID,
			Metadata:     vm.config.GetMetadata(),
			Image:        s.imageSpec(vm),
			ImageRef:     vm.ImageID,
			ImageId:      vm.ImageID,
			State:        containerState(vm),
			CreatedAt:    vm.CreatedAt.UnixNano(),
			Labels:       vm.config.GetLabels(),
			Annotations:  vm.config.GetAnnotations(),
		})
	}
	return response, nil
}

func matchesContainer(filter *runtimeapi.ContainerFilter, vm container) bool {
	return strings.HasPrefix(vm.ID, filter.GetId()) &&
		strings.HasPrefix(vm.SandboxID, filter.GetPodSandboxId()) &&
		(filter.GetState() == nil || filter.GetState().GetState() == containerState(vm)) &&
		matchesLabels(filter.GetLabelSelector(), vm.config.GetLabels())
}
