package criserver

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStatus tells what is known of a VM.
func (s *Server) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(vm)}
	if req.GetVerbose() {
		info := map[string]any{
			"sandboxID": vm.SandboxID, "domainUUID": vm.DomainUUID, "vcpus": vm.VCPUs, "memoryBytes": vm.MemoryBytes,
			"files": s.Layout.VM(vm.ID), "config": vm.config, "accelerator": s.Accel, "reboots": vm.Reboots,
		}
		if state, err := s.Domains.State(ctx, vm.DomainUUID); err != nil {
			info["domain"] = err.Error()
		} else {
			info["domain"] = state
		}
		if box, err := s.findSandbox(vm.SandboxID); err == nil {
			info["cgroup"] = s.cgroupOf(box, vm.ID)
		}
		if vm.Running() {
			s.addInner(ctx, info, vm)
		}
		if response.Info, err = infoMap(info); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// guestPatience bounds the wait for what only QEMU and the guest know of one VM. A QEMU
// that hangs tells nothing.
const guestPatience = 2 * time.Second

// addInner adds what only QEMU and the guest know, if they tell in time.
func (s *Server) addInner(ctx context.Context, info map[string]any, vm container) {
	if !vm.RebootedAt.IsZero() {
		info["rebootedAt"] = vm.RebootedAt
	}
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	stats, err := s.Domains.Stats(ctx, vm.DomainUUID)
	if err != nil {
		info["statistics"] = err.Error()
		return
	}
	info["disks"] = stats.Disks
	if stats.Guest != nil {
		info["guestMemory"] = stats.Guest
	}
}

// statuses are those of a pod's VMs, without one that CreateContainer still works on:
// nobody has its ID yet.
func (s *Server) statuses(vms []container) []*runtimeapi.ContainerStatus {
	var statuses []*runtimeapi.ContainerStatus
	for _, vm := range vms {
		if vm.Defined {
			statuses = append(statuses, s.containerStatus(vm))
		}
	}
	return statuses
}

func (s *Server) containerStatus(vm container) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id:          vm.ID,
		Metadata:    vm.config.GetMetadata(),
		State:       containerState(vm),
		CreatedAt:   vm.CreatedAt.UnixNano(),
		ExitCode:    vm.ExitCode,
		Image:       s.imageSpec(vm),
		ImageRef:    vm.ImageID,
		ImageId:     vm.ImageID,
		Reason:      vm.Reason,
		Message:     vm.Message,
		Labels:      vm.config.GetLabels(),
		Annotations: vm.config.GetAnnotations(),
		Mounts:      vm.config.GetMounts(),
		LogPath:     vm.LogPath,
		StopSignal:  vm.config.GetStopSignal(),
	}
	if !vm.StartedAt.IsZero() {
		status.StartedAt = vm.StartedAt.UnixNano()
	}
	if vm.Exited() {
		status.FinishedAt = vm.FinishedAt.UnixNano()
	}
	if resources, err := resourcesOf(vm); err == nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: resources}
	}
	return status
}

// imageSpec is the image that a VM was made from. kubelet creates by ID; people want
// to read the name, which is gone when the image is.
func (s *Server) imageSpec(vm container) *runtimeapi.ImageSpec {
	spec := proto.CloneOf(vm.config.GetImage())
	if image, err := s.Images.Resolve(vm.ImageID); err == nil && len(image.Names) > 0 {
		spec.Image = image.Names[0]
	}
	return spec
}

// resourcesOf returns the limits in force.
func resourcesOf(vm container) (*runtimeapi.LinuxContainerResources, error) {
	resources := &runtimeapi.LinuxContainerResources{}
	if err := proto.Unmarshal(vm.Resources, resources); err != nil {
		return nil, fmt.Errorf("decode resources of VM %s: %w", vm.ID, err)
	}
	return resources, nil
}

func containerState(vm container) runtimeapi.ContainerState {
	switch {
	case vm.Exited():
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case vm.Running():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	default:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
}
