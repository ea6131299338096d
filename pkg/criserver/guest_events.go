package criserver

import (
	"context"
	"time"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// A guest's one reboot is several resets of its machine, and libvirt tells of each:
// QEMU leaves the BIOS's copy in memory as it was, SeaBIOS sees there that it has run
// before, restores the copy and resets the machine again (tryReboot in its resume.c),
// sometimes twice. It needs 50 ms of processor time for that under software emulation,
// which took up to 6 s on a busy machine. What comes within rebootTime of a reboot's
// first reset, or before the VM has worked for rebootWork since, is part of that reboot;
// no operating system boots with so little work.
const (
	rebootTime = 3 * time.Second
	rebootWork = 250 * time.Millisecond
)

// noteGuest records what a guest did that does not end its VM, or not yet.
func (s *Server) noteGuest(ctx context.Context, event libvirttools.Event) error {
	records, err := s.Records.Containers.List()
	if err != nil {
		return err
	}
	for _, record := range records {
		if record.DomainUUID != event.UUID || !record.Running() {
			continue
		}
		used := s.processorTime(ctx, record)
		counts := true
		updated, err := s.Records.Containers.Update(record.ID, func(r *metadata.Container) error {
			if event.Kind == libvirttools.KindCrashed {
				r.Panicked = true
			} else {
				counts = noteReset(r, event.At, used)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !counts {
			continue
		}
		s.counters.guests.WithLabelValues(string(event.Kind)).Inc()
		s.Logger.InfoContext(ctx, "guest has "+string(event.Kind), "container", record.ID, "reboots", updated.Reboots)
	}
	return nil
}

// noteReset records a reset of a VM that has used so much processor time, and reports
// whether it is a reboot's first.
func noteReset(r *metadata.Container, at time.Time, used time.Duration) bool {
	if r.Reboots > 0 && (at.Sub(r.RebootedAt) < rebootTime || used-r.RebootedCPU < rebootWork) {
		return false
	}
	r.Reboots++
	r.RebootedAt, r.RebootedCPU = at, used
	return true
}

// processorTime is what a VM has used; where nobody counts, it is enough for a reboot.
func (s *Server) processorTime(ctx context.Context, record metadata.Container) time.Duration {
	box, err := s.findSandbox(record.SandboxID)
	if err == nil {
		var use cgroup.Stats
		if use, err = cgroup.ReadUse(s.cgroupOf(box, record.ID)); err == nil {
			return use.CPU
		}
	}
	s.Logger.WarnContext(ctx, "resets of a guest are told apart by time alone", "container", record.ID, "err", err)
	return record.RebootedCPU + rebootWork
}
