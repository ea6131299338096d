package criserver

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network/fdserver"
)

// CreateContainer makes a VM ready to boot: its disks, its cloud-init image and its
// libvirt domain.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (_ *runtimeapi.CreateContainerResponse, err error) {
	box, err := s.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	unlock, err := s.locks.lock(ctx, box.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()

	if err := s.clearUnfinished(ctx, box.ID); err != nil {
		return nil, err
	}
	plan, err := s.planVM(ctx, box, req.GetConfig())
	if err != nil {
		return nil, err
	}
	if err := s.removeSuperseded(ctx, box.ID); err != nil {
		return nil, err
	}
	vm, err := s.newContainer(box, req.GetConfig(), plan)
	if err != nil {
		return nil, err
	}
	if err := s.Records.Containers.Create(vm.ID, vm.Container); err != nil {
		return nil, err
	}
	failpoint.Hit("CreateContainer/recorded")
	var steps undo
	defer func() {
		steps.unwind(ctx, &err)
		if err != nil { // a libvirtd that hung may define the domain after all
			s.overdue.enter(vm.ID)
			s.tidySoon()
		}
	}()
	steps.push("remove the unfinished VM", func(ctx context.Context) error { return s.destroyVM(ctx, vm) })

	if err := s.buildVM(ctx, box, vm, plan); err != nil {
		return nil, fmt.Errorf("create VM %s of pod %s: %w", vm.config.GetMetadata().GetName(), podName(box.config), err)
	}
	if vm.Container, err = s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.Defined = true
		return nil
	}); err != nil {
		return nil, err
	}
	failpoint.Hit("CreateContainer/complete")
	steps.disarm()
	s.publish(box.ID, vm.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: vm.ID}, nil
}

// vmPlan is what a pod's spec comes to, before anything of it exists.
type vmPlan struct {
	settings annotations.Settings
	size     size
	image    imagestore.Image
	volumes  guestVolumes
	cloned   bool // the root disk is a clone of the image; known when it is made
}

// planVM checks everything that can be checked without making anything.
func (s *Server) planVM(ctx context.Context, box sandbox, config *runtimeapi.ContainerConfig) (vmPlan, error) {
	if box.State != metadata.SandboxReady {
		return vmPlan{}, fmt.Errorf("sandbox %s of pod %s is not ready: %w", box.ID, podName(box.config), errdefs.ErrFailedPrecondition)
	}
	if config.GetMetadata().GetName() == "" {
		return vmPlan{}, fmt.Errorf("container configuration for pod %s needs metadata with a name: %w", podName(box.config), errdefs.ErrInvalidArgument)
	}
	if err := s.checkOnlyVM(box, config.GetMetadata()); err != nil {
		return vmPlan{}, err
	}
	settings, err := annotations.Parse(box.config.GetAnnotations())
	if err != nil {
		return vmPlan{}, err
	}
	vmSize, err := sizeOf(config.GetLinux().GetResources(), settings)
	if err != nil {
		return vmPlan{}, err
	}
	image, err := s.Images.Resolve(config.GetImage().GetImage())
	if err != nil {
		return vmPlan{}, fmt.Errorf("image of container %s: %w", config.GetMetadata().GetName(), err)
	}
	found, err := s.volumesOf(config, settings)
	if err != nil {
		return vmPlan{}, err
	}
	if err := s.checkFolders(ctx, found); err != nil {
		return vmPlan{}, err
	}
	plan := vmPlan{settings: settings, size: vmSize, image: image, volumes: found}
	return plan, s.checkHardware(ctx, plan)
}

// checkOnlyVM refuses a second VM in a sandbox. An earlier one of the same name that
// has ended, or was never started, is what kubelet leaves behind when it tries again.
func (s *Server) checkOnlyVM(box sandbox, wanted *runtimeapi.ContainerMetadata) error {
	existing, err := s.containersOf(box.ID)
	if err != nil {
		return err
	}
	for _, other := range existing {
		meta := other.config.GetMetadata()
		switch {
		case meta.GetName() != wanted.GetName():
			return fmt.Errorf("pod %s has the VM %s already and a VM pod runs exactly one: put container %s, or an init container or sidecar of that name, into a pod of its own: %w",
				podName(box.config), meta.GetName(), wanted.GetName(), errdefs.ErrInvalidArgument)
		case meta.GetAttempt() == wanted.GetAttempt():
			return fmt.Errorf("VM %s of pod %s, attempt %d, exists already as %s: %w",
				wanted.GetName(), podName(box.config), wanted.GetAttempt(), other.ID, errdefs.ErrAlreadyExists)
		case other.Running():
			return fmt.Errorf("VM %s of pod %s still exists as %s: stop or remove it first: %w",
				wanted.GetName(), podName(box.config), other.ID, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// clearUnfinished removes what a CreateContainer that failed could not, as when
// libvirtd was away: nobody else would before the next start, and meanwhile it would
// stand in the way. It needs the sandbox's lock, under which none is being created.
func (s *Server) clearUnfinished(ctx context.Context, sandboxID string) error {
	existing, err := s.containersOf(sandboxID)
	if err != nil {
		return err
	}
	for _, vm := range existing {
		if vm.Defined {
			continue
		}
		if err := s.destroyVM(ctx, vm); err != nil {
			return fmt.Errorf("remove what an earlier attempt left: %w", err)
		}
	}
	return nil
}

// removeSuperseded removes a VM that was created and never started, once its pod is
// given another: kubelet has not learnt its ID, or could not start it, and would not
// do so any more. It needs the sandbox's lock.
func (s *Server) removeSuperseded(ctx context.Context, sandboxID string) error {
	existing, err := s.containersOf(sandboxID)
	if err != nil {
		return err
	}
	for _, vm := range existing {
		if !vm.StartedAt.IsZero() {
			continue
		}
		s.Logger.InfoContext(ctx, "removing a VM that was never started, another takes its place", "container", vm.ID, "sandbox", sandboxID)
		if err := s.removeContainer(ctx, vm); err != nil {
			return fmt.Errorf("remove VM %s, which was never started: %w", vm.ID, err)
		}
	}
	return nil
}

// newContainer makes the record of a VM that does not exist yet.
func (s *Server) newContainer(box sandbox, config *runtimeapi.ContainerConfig, plan vmPlan) (container, error) {
	encoded, err := proto.Marshal(config)
	if err != nil {
		return container{}, fmt.Errorf("encode configuration of container %s: %w", config.GetMetadata().GetName(), err)
	}
	resources, err := proto.Marshal(config.GetLinux().GetResources())
	if err != nil {
		return container{}, fmt.Errorf("encode resources of container %s: %w", config.GetMetadata().GetName(), err)
	}
	record := metadata.Container{
		ID:          randomHex(idBytes),
		SandboxID:   box.ID,
		Config:      encoded,
		ImageID:     plan.image.ID,
		DomainUUID:  plan.settings.SystemUUID,
		FDKey:       fdserver.NewKey(),
		CreatedAt:   failpoint.Now(),
		MemoryBytes: plan.size.memory,
		VCPUs:       plan.size.vcpus,
		Resources:   resources,
	}
	if err := s.makeNewest(box, &record); err != nil {
		return container{}, err
	}
	if record.DomainUUID == "" { // libvirt wants the guest's SMBIOS UUID and the domain's to be one
		record.DomainUUID = uuid.NewString()
	}
	if box.config.GetLogDirectory() != "" && config.GetLogPath() != "" {
		record.LogPath = filepath.Join(box.config.GetLogDirectory(), config.GetLogPath())
	}
	return container{record, config}, nil
}

// makeNewest sees to it that a VM is younger than its predecessors, in all sandboxes of
// its pod, even if the clock was set back: kubelet takes the youngest of a pod for the
// one that counts.
func (s *Server) makeNewest(box sandbox, record *metadata.Container) error {
	census, err := s.census()
	for _, other := range census.boxes {
		if other.config.GetMetadata().GetUid() != box.config.GetMetadata().GetUid() {
			continue
		}
		for _, sibling := range census.vms[other.ID] {
			record.CreatedAt = after(record.CreatedAt, sibling.CreatedAt)
		}
	}
	return err
}

// after is now, or the instant after earlier if now is not later.
func after(now, earlier time.Time) time.Time {
	if now.After(earlier) {
		return now
	}
	return earlier.Add(1)
}
