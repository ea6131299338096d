package libvirttools

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// Stats are numbers about a running domain that only QEMU knows. CPU time and
// memory of the process are in the pod's control group.
type Stats struct {
	Disks []DiskStats
	// Guest is the guest's own view of its memory; nil if it has no balloon driver
	// or has not reported yet.
	Guest *GuestMemory
}

// DiskStats are counters since the start of the domain, and sizes.
type DiskStats struct {
	Target        string // "sda"
	Path          string
	ReadBytes     uint64
	ReadRequests  uint64
	WriteBytes    uint64
	WriteRequests uint64
	Capacity      uint64 // bytes that the guest sees
	Physical      uint64 // bytes of the file
	Allocation    uint64 // highest offset in use
}

// GuestMemory in bytes, as of At.
type GuestMemory struct {
	Total      uint64 // what the guest's kernel manages
	Unused     uint64 // not even for caches
	Usable     uint64 // without swapping
	DiskCaches uint64
	At         time.Time
}

// Stats asks a domain's QEMU, which may never answer: give the context a deadline, and
// ask for each domain separately. While the answer is due, and while the domain is busy
// with another request, further calls fail at once with errdefs.ErrUnavailable. So do
// calls for a domain that does not run; an absent one is errdefs.ErrNotFound.
func (c *Client) Stats(ctx context.Context, uuid string) (Stats, error) {
	if err := c.prepare(); err != nil {
		return Stats{}, err
	}
	stats, err := call(ctx, c.reads, func(conn *libvirt.Connect) (Stats, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (Stats, error) {
			if _, err := c.markOf(dom); err != nil {
				return Stats{}, err
			}
			records, err := conn.GetAllDomainStats([]*libvirt.Domain{dom},
				libvirt.DOMAIN_STATS_STATE|libvirt.DOMAIN_STATS_BLOCK|libvirt.DOMAIN_STATS_BALLOON,
				libvirt.CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
			if err != nil {
				return Stats{}, err
			}
			return toStats(records)
		})
	})
	if err != nil {
		return Stats{}, fmt.Errorf("statistics of domain %s: %w", uuid, err)
	}
	return stats, nil
}

// toStats translates libvirt's only record and frees its domain.
func toStats(records []libvirt.DomainStats) (Stats, error) {
	for _, r := range records {
		defer func() { _ = r.Domain.Free() }()
	}
	// Of a busy domain libvirt tells what its disks are called, and no numbers.
	if len(records) != 1 || !isActive(records[0].State) || len(records[0].Block) == 0 || !records[0].Block[0].RdBytesSet {
		return Stats{}, fmt.Errorf("it does not run or is busy: %w", errdefs.ErrUnavailable)
	}
	stats := Stats{Guest: guestMemory(records[0].Balloon)}
	for _, b := range records[0].Block {
		stats.Disks = append(stats.Disks, DiskStats{
			Target: b.Name, Path: b.Path,
			ReadBytes: b.RdBytes, ReadRequests: b.RdReqs,
			WriteBytes: b.WrBytes, WriteRequests: b.WrReqs,
			Capacity: b.Capacity, Physical: b.Physical, Allocation: b.Allocation,
		})
	}
	return stats, nil
}

func isActive(s *libvirt.DomainStatsState) bool {
	return s != nil && s.StateSet && toState(s.State, s.Reason).Active()
}

func guestMemory(b *libvirt.DomainStatsBalloon) *GuestMemory {
	if b == nil || !b.AvailableSet || !b.LastUpdateSet || b.LastUpdate == 0 {
		return nil
	}
	return &GuestMemory{
		Total:      b.Available * kib,
		Unused:     b.Unused * kib,
		Usable:     b.Usable * kib,
		DiskCaches: b.DiskCaches * kib,
		At:         time.Unix(int64(b.LastUpdate), 0), //nolint:gosec // seconds since 1970
	}
}
