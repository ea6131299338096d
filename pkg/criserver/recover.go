package criserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/metadata"
)

const (
	// sweepInterval is how often Maintain looks for what is left over, tidyInterval
	// how soon after something could not be finished.
	sweepInterval = 5 * time.Minute
	tidyInterval  = 5 * time.Second

	// recoverTimeout bounds what Recover does before this process serves: libvirtd and
	// CNI plugins may hang, and lists need neither. 100 VMs take a fraction of it.
	recoverTimeout = 5 * time.Second

	// recoverWorkers is how many sandboxes and VMs are recovered at once: most of the
	// time goes by in waiting for the kernel's network code and for libvirtd.
	recoverWorkers = 8

	// tidyTimeout bounds one round of Maintain.
	tidyTimeout = time.Minute
)

// Recover brings records and reality together after a start. It assumes:
//
//  1. no other vmruntime uses the database (bolt's lock sees to it);
//  2. a sandbox in state creating was never answered for: nobody has its ID;
//  3. so was a container without Defined; one with Removing is nobody's any more;
//  4. VMs went on running, or ended, while no one looked: settle finds out which;
//  5. after a reboot the network namespaces are gone, and with them every VM.
//
// A sandbox or VM that cannot be brought to order, or not within recoverTimeout, is
// reported and left for kubelet's next call, or for Maintain; only unreadable records
// make Recover fail, because what they stood for would be swept away as nobody's.
func (s *Server) Recover(ctx context.Context) error {
	vms, err := s.containers()
	if err != nil {
		return err
	}
	boxes, err := s.sandboxes()
	if err != nil {
		return err
	}
	if err := s.Images.SetHolders(holders(vms)); err != nil {
		return err
	}
	// Consoles first, whether or not libvirt answers: what guests said is in their files.
	for _, vm := range vms {
		s.overdue.enter(vm.ID)
		if vm.Running() {
			if err := s.consoles.start(vm, s.Layout.VM(vm.ID)); err != nil {
				s.Logger.ErrorContext(ctx, "console is not followed", "container", vm.ID, "err", err)
			}
		}
	}
	for _, box := range boxes {
		s.overdue.enter(box.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	s.tidy(ctx)
	s.Logger.InfoContext(ctx, "recovered", "sandboxes", len(boxes), "containers", len(vms), "overdue", len(s.overdue.all()))
	return nil
}

// tidy brings to order what is not, and reports whether nothing is left to do. It
// needs no lock; calls may go on beside it.
func (s *Server) tidy(ctx context.Context) bool {
	swept := false
	var sweeping sync.WaitGroup
	sweeping.Go(func() { swept = s.sweepNetworks(ctx) }) // beside all that may take libvirtd's time
	defer sweeping.Wait()
	var recovering errgroup.Group
	recovering.SetLimit(recoverWorkers)
	for _, id := range s.overdue.all() {
		recovering.Go(func() error {
			err := s.recoverOne(ctx, id)
			if err == nil {
				s.overdue.leave(id)
			} else {
				s.Logger.ErrorContext(ctx, "not recovered yet", "id", id, "err", err)
			}
			return nil
		})
	}
	_ = recovering.Wait() // each has told of its failure
	if err := s.sweepDomains(ctx); err != nil {
		s.Logger.ErrorContext(ctx, "orphaned domains are not swept", "err", err)
		return false
	}
	sweeping.Wait()
	return swept && len(s.overdue.all()) == 0
}

// recoverOne recovers a sandbox or a container; one that has been removed meanwhile
// needs it no more.
func (s *Server) recoverOne(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	vm, err := s.findContainer(id)
	if err == nil {
		err = s.recoverContainer(ctx, vm)
		s.counters.recover("vm", err)
		return err
	}
	if !errdefs.IsNotFound(err) {
		return err
	}
	err = s.withSandbox(ctx, id, "recover", s.recoverSandbox)
	s.counters.recover("sandbox", err)
	return err
}

// tidySoon has Maintain look after what could not be finished.
func (s *Server) tidySoon() {
	select {
	case s.hurry <- struct{}{}:
	default: // it knows
	}
}

// holders tells which images the VMs boot from; the image store keeps these and no
// other removed ones.
func holders(vms []container) map[string][]string {
	images := map[string][]string{}
	for _, vm := range vms {
		images[vm.ID] = []string{vm.ImageID}
	}
	return images
}

// Maintain repeats until the context ends what cannot be finished at once: what Recover
// had no time for, a VM whose end could not be recorded, the network of a sandbox that
// failed, when tearing it down failed as well.
func (s *Server) Maintain(ctx context.Context) error {
	wait := sweepInterval
	if len(s.overdue.all()) > 0 {
		wait = tidyInterval
	}
	soon := wait == tidyInterval
	again := time.NewTimer(wait)
	defer again.Stop()
	for {
		select {
		case <-s.hurry:
			if !soon { // else calls that go on failing would put it off for ever
				soon = true
				again.Reset(tidyInterval)
			}
			continue
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		round, cancel := context.WithTimeout(ctx, tidyTimeout)
		if soon = !s.tidy(round); soon {
			again.Reset(tidyInterval)
		} else {
			again.Reset(sweepInterval)
		}
		cancel()
	}
}

// sweepNetworks removes networks that belong to no sandbox. Without the records
// nothing is swept.
func (s *Server) sweepNetworks(ctx context.Context) bool {
	boxes, err := s.Records.Sandboxes.List()
	if err == nil {
		live := map[string]bool{}
		for _, box := range boxes {
			live[box.ID] = box.State != metadata.SandboxStopped
		}
		err = s.Network.Sweep(ctx, live)
	}
	if err != nil && ctx.Err() == nil {
		s.Logger.ErrorContext(ctx, "orphaned networks are not swept", "err", err)
	}
	return err == nil
}

// Close ends what runs in this process; VMs go on.
func (s *Server) Close(ctx context.Context) error {
	s.figures.close()
	return errors.Join(s.access.close(), s.consoles.close(ctx))
}

func (s *Server) recoverContainer(ctx context.Context, vm container) error {
	if !vm.Defined || vm.Removing {
		return s.removeContainer(ctx, vm)
	}
	if vm.StartedAt.IsZero() {
		if err := s.recoverStart(ctx, vm); err != nil {
			return err
		}
	}
	vm, err := s.findContainer(vm.ID)
	if err != nil || !vm.Running() {
		return err
	}
	// The console goes first, and whether or not libvirt answers: what the guest said
	// is in its file, and settle copies the rest of it when the VM has ended.
	return errors.Join(s.consoles.start(vm, s.Layout.VM(vm.ID)), s.settled(ctx, vm.ID))
}

func (s *Server) settled(ctx context.Context, id string) error {
	_, err := s.settle(ctx, id)
	return err
}

// recoverStart records the start of a VM that came up while its StartContainer died.
func (s *Server) recoverStart(ctx context.Context, vm container) error {
	unlock, err := s.locks.lock(ctx, vm.ID)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := s.Domains.State(ctx, vm.DomainUUID)
	if err != nil || !state.Active() {
		return err
	}
	_, err = s.Records.Containers.Update(vm.ID, func(r *metadata.Container) error {
		if r.StartedAt.IsZero() {
			r.StartedAt = after(failpoint.Now(), r.CreatedAt)
		}
		return nil
	})
	return err
}

// recoverSandbox takes back what was never answered for, brings the network of a
// ready sandbox up again, and stops one whose network is gone. It needs the sandbox's
// lock, which RunPodSandbox holds while it makes one.
func (s *Server) recoverSandbox(ctx context.Context, box sandbox) error {
	switch box.State {
	case metadata.SandboxCreating:
		return s.discardSandbox(ctx, box)
	case metadata.SandboxStopped:
		return nil
	}
	result, err := networkResult(box.Sandbox)
	if err != nil {
		return err
	}
	err = s.Network.Connect(ctx, box.ID, result)
	if !errdefs.IsNotFound(err) {
		return err
	}
	s.Logger.InfoContext(ctx, "network namespace is gone, as after a reboot; the sandbox is not ready any more", "pod", podName(box.config))
	return s.stopSandbox(ctx, box)
}

// discardSandbox removes a sandbox that was never answered for.
func (s *Server) discardSandbox(ctx context.Context, box sandbox) error {
	if err := s.Network.Teardown(ctx, networkPod(box.ID, box.config)); err != nil {
		return err
	}
	return s.Records.Sandboxes.Delete(box.ID)
}

// sweepDomains removes domains that carry our mark but have no record.
func (s *Server) sweepDomains(ctx context.Context) error {
	owned, err := s.Domains.Owned(ctx)
	if err != nil {
		return err
	}
	var failures error
	for _, domain := range owned {
		_, err := s.Records.Containers.Get(domain.ContainerID)
		if err == nil {
			continue
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
		s.Logger.WarnContext(ctx, "removing a domain of ours that has no record", "domain", domain.Name, "container", domain.ContainerID)
		if err := errors.Join(s.Domains.Destroy(ctx, domain.UUID), s.Domains.Undefine(ctx, domain.UUID)); err != nil {
			failures = errors.Join(failures, fmt.Errorf("domain %s: %w", domain.Name, err))
			continue
		}
		s.counters.orphans.Inc()
	}
	return failures
}
