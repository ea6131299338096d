package libvirttools

import (
	"context"
	"time"

	"libvirt.org/go/libvirt"
)

// followTakeUp queues a Resync whenever libvirtd has got done with some of the domains that
// it was busy with at first, until it has with all. A libvirtd that has just started takes
// up its QEMUs one by one, and causes no event about one that ends before its turn is over
// (libvirt, qemuProcessReconnect in qemu_process.c).
func (s *subscription) followTakeUp(ctx context.Context, conn *libvirt.Connect, busy map[string]bool) {
	retry := firstRetry
	for len(busy) > 0 {
		if pause(ctx, retry) != nil {
			return
		}
		retry = min(2*retry, lastRetry)
		still := busyDomains(conn)
		done := false
		for uuid := range busy {
			if !still[uuid] {
				delete(busy, uuid)
				done = true
			}
		}
		if done {
			s.queue(Event{Kind: KindResync, At: time.Now()})
		}
	}
}

// busyDomains are the UUIDs of domains for which libvirtd does something just now, as which
// taking up counts. A broken connection has none.
func busyDomains(conn *libvirt.Connect) map[string]bool {
	domains, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
	if err != nil {
		return nil
	}
	busy := map[string]bool{}
	for _, dom := range domains {
		info, err := dom.GetControlInfo(0) // does not wait for QEMU; fails for one that has ended
		if uuid, uuidErr := dom.GetUUIDString(); err == nil && uuidErr == nil {
			if info.State == libvirt.DOMAIN_CONTROL_JOB || info.State == libvirt.DOMAIN_CONTROL_OCCUPIED {
				busy[uuid] = true
			}
		}
		_ = dom.Free()
	}
	return busy
}
