package criserver

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/network/fdserver"
)

// startErrorCode is the exit code of a VM that could not be started, as containerd
// has it.
const startErrorCode = 128

// StartContainer boots a VM. A VM that already runs is left as it is: the answer to
// an earlier call may have been lost.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	vm, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	box, err := s.findSandbox(vm.SandboxID)
	if err != nil {
		return nil, err
	}
	for _, id := range []string{box.ID, vm.ID} {
		unlock, err := s.locks.lock(ctx, id)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	// Both may have changed while we waited.
	if vm, err = s.findContainer(vm.ID); err != nil {
		return nil, err
	}
	if box, err = s.findSandbox(box.ID); err != nil {
		return nil, err
	}
	switch {
	case vm.Running():
		return &runtimeapi.StartContainerResponse{}, nil
	case vm.Exited() || vm.Removing || !vm.Defined:
		return nil, fmt.Errorf("VM %s is past its start, create a new one: %w", vm.ID, errdefs.ErrFailedPrecondition)
	case box.State != metadata.SandboxReady:
		return nil, fmt.Errorf("sandbox %s of pod %s is not ready: %w", box.ID, podName(box.config), errdefs.ErrFailedPrecondition)
	}
	if err := s.boot(ctx, box, vm); err != nil {
		return nil, errors.Join(fmt.Errorf("start VM of pod %s: %w", podName(box.config), err), s.recordFailedStart(ctx, vm, err))
	}
	s.publish(box.ID, vm.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.StartContainerResponse{}, nil
}

// boot connects a VM to its network, begins to read its console and starts its
// domain.
func (s *Server) boot(ctx context.Context, box sandbox, vm container) (err error) {
	var steps undo
	defer func() { steps.unwind(ctx, &err) }()

	settings, err := annotations.Parse(box.config.GetAnnotations())
	if err != nil {
		return err
	}
	result, err := networkResult(box.Sandbox)
	if err != nil {
		return err
	}
	result.Queues = nicQueues(vm, settings)
	if err := s.Network.Connect(ctx, box.ID, result); err != nil {
		return err
	}
	failpoint.Hit("StartContainer/connected")
	if err := s.consoles.start(vm, s.Layout.VM(vm.ID)); err != nil {
		return err
	}
	failpoint.Hit("StartContainer/console-followed")
	steps.push("stop reading the console", func(ctx context.Context) error { return s.consoles.finish(ctx, vm.ID) })

	steps.push("end the control group", func(ctx context.Context) error { return cgroup.End(ctx, s.cgroupOf(box, vm.ID)) })
	found, err := s.volumesOf(vm.config, settings)
	if err != nil {
		return err
	}
	shares, err := s.startHelpers(ctx, box, vm, found.served(), settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shares.close()) }()
	disks, err := found.openDisks(s.Layout.VM(vm.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disks.close()) }()

	s.Grants.Grant(vm.FDKey, s.grant(box, vm, settings, result))
	failpoint.Hit("StartContainer/granted")
	defer s.Grants.Revoke(vm.FDKey) // QEMU has what it needs once the domain runs
	if err := s.Domains.Start(ctx, vm.DomainUUID, disks...); err != nil {
		return errors.Join(err, shares.problems())
	}
	failpoint.Hit("StartContainer/domain-started")
	steps.push("switch the VM off", func(ctx context.Context) error { return s.Domains.Destroy(ctx, vm.DomainUUID) })
	if _, err := s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.StartedAt = after(failpoint.Now(), r.CreatedAt)
		return nil
	}); err != nil {
		return err
	}
	failpoint.Hit("StartContainer/recorded")
	steps.disarm()
	return nil
}

// grant is what the VM's vmwrapper gets when it asks with its key: first it is moved
// into the pod's control group, then it is given the taps.
func (s *Server) grant(box sandbox, vm container, settings annotations.Settings, result *network.Result) fdserver.Grant {
	grant := fdserver.Grant{
		Taps:  func(ctx context.Context) ([][]*os.File, error) { return s.Network.OpenTaps(ctx, box.ID, result) },
		Admit: func(pid int) error { return s.admit(box, vm, pid) },
	}
	for _, nic := range result.Interfaces {
		grant.NICs = append(grant.NICs, fdproto.NIC{
			MAC: nic.MAC, MTU: nic.MTU, Model: nicModel(settings), Bus: libvirttools.PCIBus(machineOf(settings)),
		})
	}
	return grant
}

// admit puts what will be QEMU into the VM's control group.
func (s *Server) admit(box sandbox, vm container, pid int) error {
	if err := s.makeGroup(box, vm); err != nil {
		return err
	}
	if err := cgroup.Add(s.cgroupOf(box, vm.ID), pid); err != nil {
		return err
	}
	failpoint.Hit("StartContainer/admitted")
	return nil
}

// makeGroup makes a VM's control group, below the pod's, if there is none.
func (s *Server) makeGroup(box sandbox, vm container) error {
	group := s.cgroupOf(box, vm.ID)
	resources, err := resourcesOf(vm)
	if err != nil {
		return err
	}
	if err := cgroup.Create(group, cgroupLimits(resources)); err != nil {
		return err
	}
	if box.config.GetLinux().GetOverhead().GetMemoryLimitInBytes() == 0 {
		limit := leastLimit(vm, resources)
		raised, err := cgroup.RaiseMemory(group, limit)
		if err != nil {
			return err
		}
		if raised {
			s.Logger.Info("pod declares no overhead, raised its memory limit by QEMU's own need",
				"pod", podName(box.config), "limit", limit)
		}
	}
	return nil
}

func (s *Server) cgroupOf(box sandbox, id string) string {
	return cgroup.Path(box.config.GetLinux().GetCgroupParent(), id)
}

// recordFailedStart makes a VM that could not start an exited one; kubelet then
// creates another.
func (s *Server) recordFailedStart(ctx context.Context, vm container, cause error) error {
	_, err := s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.StartedAt = after(failpoint.Now(), r.CreatedAt)
		r.FinishedAt = r.StartedAt
		r.ExitCode, r.Reason, r.Message = startErrorCode, "StartError", cause.Error()
		return nil
	})
	s.Logger.ErrorContext(ctx, "VM did not start", "container", vm.ID, "err", cause)
	return err
}
