package criserver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// Watch follows libvirt's events until the context ends, and settles each VM that an
// event, or a reconnect, leaves in doubt.
func (s *Server) Watch(ctx context.Context) error {
	var settling sync.WaitGroup
	defer settling.Wait()
	return s.Domains.Watch(ctx, func(event libvirttools.Event) {
		switch event.Kind {
		case libvirttools.KindResync:
			settling.Go(func() { s.settleAll(ctx, func(container) bool { return true }) })
		case libvirttools.KindStopped, libvirttools.KindUndefined:
			settling.Go(func() { s.settleAll(ctx, func(vm container) bool { return vm.DomainUUID == event.UUID }) })
		case libvirttools.KindRebooted, libvirttools.KindCrashed:
			// At once: the verdict on a guest that ends needs to know.
			if err := s.noteGuest(ctx, event); err != nil {
				s.Logger.ErrorContext(ctx, "what a guest did is not recorded", "domain", event.UUID, "event", event.Kind, "err", err)
			}
		}
	})
}

// settleAll compares with libvirt the records that are of interest.
func (s *Server) settleAll(ctx context.Context, concerned func(container) bool) {
	vms, err := s.containers()
	if err != nil {
		s.Logger.ErrorContext(ctx, "records cannot be compared with libvirt", "err", err)
		return
	}
	for _, vm := range vms {
		if !concerned(vm) {
			continue
		}
		if _, err := s.settle(ctx, vm.ID); err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
			s.Logger.ErrorContext(ctx, "state of VM is in doubt", "container", vm.ID, "err", err)
			s.overdue.enter(vm.ID)
			s.tidySoon()
		}
	}
}

// settle makes a VM's record agree with libvirt and reports whether the VM has ended.
// Whoever suspects a change calls it; only the first call after a change does
// anything.
func (s *Server) settle(ctx context.Context, id string) (ended bool, err error) {
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	vm, err := s.findContainer(id)
	if err != nil {
		return errdefs.IsNotFound(err), err
	}
	if vm.StartedAt.IsZero() {
		return false, nil
	}
	state, err := s.Domains.State(ctx, vm.DomainUUID)
	if err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	switch {
	case vm.Exited() && state.Active():
		// A start that we gave up on has come through after all.
		return true, s.Domains.Destroy(ctx, vm.DomainUUID)
	case vm.Exited():
		return true, nil
	case state.Active():
		return false, nil
	}
	return true, s.recordEnd(ctx, vm, state)
}

// recordEnd needs the container's lock.
func (s *Server) recordEnd(ctx context.Context, vm container, state libvirttools.State) error {
	// All that the guest said comes before its end is told.
	if err := s.consoles.finish(ctx, vm.ID); err != nil {
		s.Logger.WarnContext(ctx, "console log may be incomplete", "container", vm.ID, "err", err)
	}
	failpoint.Hit("StopContainer/console-finished")
	v := s.judge(ctx, vm, state)
	if box, err := s.findSandbox(vm.SandboxID); err == nil {
		group := s.cgroupOf(box, vm.ID)
		if stats, err := cgroup.Read(group); err == nil && stats.OOMKills > 0 {
			v.code, v.reason = exitKilled, "OOMKilled"
			v.message = fmt.Sprintf("the pod's memory limit was reached; QEMU needs about %d MiB beside the guest's %d MiB, declare them as the pod's overhead",
				qemuOverhead>>20, vm.MemoryBytes>>20)
		}
		if err := cgroup.End(ctx, group); err != nil {
			s.Logger.WarnContext(ctx, "control group stays until the VM is removed", "container", vm.ID, "err", err)
		}
	}
	if _, err := s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		r.FinishedAt, r.ExitCode, r.Reason, r.Message = v.at, v.code, v.reason, v.message
		return nil
	}); err != nil {
		return err
	}
	failpoint.Hit("StopContainer/recorded")
	s.Logger.InfoContext(ctx, "VM has ended", "container", vm.ID, "reason", v.reason, "exitCode", v.code, "message", v.message)
	// The verdict is kept; the domain has nothing more to tell, and a successor may
	// need its UUID.
	if err := s.Domains.Undefine(ctx, vm.DomainUUID); err != nil {
		s.Logger.WarnContext(ctx, "domain stays until the VM is removed", "container", vm.ID, "err", err)
	}
	failpoint.Hit("StopContainer/undefined")
	s.access.commands.Forget(vm.ID)
	s.exits.announce(vm.ID)
	s.publish(vm.SandboxID, vm.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// exits lets a caller wait for the end of a VM.
type exits struct {
	mu      sync.Mutex // guards waiting
	waiting map[string]map[chan struct{}]struct{}
}

func newExits() *exits { return &exits{waiting: map[string]map[chan struct{}]struct{}{}} }

// expect returns a channel that is closed when the VM's end has been recorded, and
// the function to call when nobody waits any more.
func (e *exits) expect(id string) (exited <-chan struct{}, forget func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	channel := make(chan struct{})
	if e.waiting[id] == nil {
		e.waiting[id] = map[chan struct{}]struct{}{}
	}
	e.waiting[id][channel] = struct{}{}
	return channel, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.waiting[id], channel)
		if len(e.waiting[id]) == 0 {
			delete(e.waiting, id)
		}
	}
}

func (e *exits) announce(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for channel := range e.waiting[id] {
		close(channel)
	}
	delete(e.waiting, id)
}
