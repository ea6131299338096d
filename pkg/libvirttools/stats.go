package libvirttools

import (
	"context"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"
)

// Stats are numbers about a running domain that only QEMU knows. CPU time and
// memory of the process are in the pod's control group.
type Stats struct {
	UUID  string
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

// Stats asks for several domains at once, of which those that are absent, inactive,
// foreign or at that moment busy with another request are missing from the answer.
func (c *Client) Stats(ctx context.Context, uuids []string) ([]Stats, error) {
	if len(uuids) == 0 {
		return nil, nil
	}
	list, err := look(ctx, c, func(conn *libvirt.Connect) ([]Stats, error) {
		var doms []*libvirt.Domain
		defer func() {
			for _, dom := range doms {
				_ = dom.Free()
			}
		}()
		for _, uuid := range uuids {
			dom, err := conn.LookupDomainByUUIDString(uuid)
			if hasCode(err, libvirt.ERR_NO_DOMAIN) {
				continue
			}
			if err != nil {
				return nil, err
			}
			doms = append(doms, dom)
		}
		if len(doms) == 0 {
			return nil, nil // libvirt would take that for "all"
		}
		// Without NOWAIT, one hung QEMU would hold up the numbers of all.
		records, err := conn.GetAllDomainStats(doms,
			libvirt.DOMAIN_STATS_STATE|libvirt.DOMAIN_STATS_BLOCK|libvirt.DOMAIN_STATS_BALLOON,
			libvirt.CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
		if err != nil {
			return nil, err
		}
		return toStats(records)
	})
	if err != nil {
		return nil, fmt.Errorf("statistics of %d domains: %w", len(uuids), err)
	}
	return list, nil
}

// toStats translates libvirt's records and frees their domains.
func toStats(records []libvirt.DomainStats) ([]Stats, error) {
	defer func() {
		for _, r := range records {
			_ = r.Domain.Free()
		}
	}()
	var list []Stats
	for _, r := range records {
		uuid, err := r.Domain.GetUUIDString()
		if err != nil {
			return nil, err
		}
		if !isActive(r.State) || len(r.Block) == 0 {
			continue
		}
		one := Stats{UUID: uuid, Guest: guestMemory(r.Balloon)}
		for _, b := range r.Block {
			one.Disks = append(one.Disks, DiskStats{
				Target: b.Name, Path: b.Path,
				ReadBytes: b.RdBytes, ReadRequests: b.RdReqs,
				WriteBytes: b.WrBytes, WriteRequests: b.WrReqs,
				Capacity: b.Capacity, Physical: b.Physical, Allocation: b.Allocation,
			})
		}
		list = append(list, one)
	}
	return list, nil
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
