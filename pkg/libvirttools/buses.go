package libvirttools

import (
	"regexp"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// letters end the names of targets.
const letters = "abcdefghijklmnopqrstuvwxyz"

// bus is what differs between the places where a disk can sit.
type bus struct {
	prefix  string // of target names
	pattern *regexp.Regexp
	size    int // disks that fit
	// address places the n-th disk, in the order of target names.
	address func(n uint) *libvirtxml.DomainAddress
}

var buses = map[string]bus{
	BusSCSI: {"sd", regexp.MustCompile(`^sd[a-z]$`), 26, func(n uint) *libvirtxml.DomainAddress {
		return drive(0, 0, n)
	}},
	BusVirtio: {"vd", regexp.MustCompile(`^vd[a-z]$`), 26, func(n uint) *libvirtxml.DomainAddress {
		return function(slotFirstDisk, n)
	}},
	// One drive on each port of an AHCI controller.
	BusSATA: {"sd", regexp.MustCompile(`^sd[a-z]$`), 6, func(n uint) *libvirtxml.DomainAddress {
		return drive(0, 0, n)
	}},
	// Two channels with two drives each.
	BusIDE: {"hd", regexp.MustCompile(`^hd[a-z]$`), 4, func(n uint) *libvirtxml.DomainAddress {
		return drive(0, n/2, n%2)
	}},
}

func (d Disk) bus() string {
	if d.Bus == "" {
		return BusSCSI
	}
	return d.Bus
}

// assignTargets returns a target for each disk: the one it asks for, or the first
// letter of its bus that none asks for.
func assignTargets(disks []Disk) ([]string, error) {
	targets := make([]string, len(disks))
	for i, d := range disks {
		targets[i] = d.Target
	}
	for i, d := range disks {
		for n := 0; targets[i] == "" && n < len(letters); n++ {
			if name := buses[d.bus()].prefix + letters[n:][:1]; !slices.Contains(targets, name) {
				targets[i] = name
			}
		}
		if targets[i] == "" || int(index(targets[i])) >= buses[d.bus()].size {
			return nil, invalid("disk %s does not fit on bus %s, which has room for %d", d.Path, d.bus(), buses[d.bus()].size)
		}
	}
	return targets, checkSlots(disks, targets)
}

// checkSlots refuses a gap in the targets that leaves a PCI slot without its first
// device: the guest would not look for the others.
func checkSlots(disks []Disk, targets []string) error {
	for i, d := range disks {
		first := buses[BusVirtio].prefix + letters[index(targets[i])/functions*functions:][:1]
		if d.bus() == BusVirtio && !slices.Contains(targets, first) {
			return invalid("disk %s with target %s shares a PCI slot with target %s, which no disk has", d.Path, targets[i], first)
		}
	}
	return nil
}

// index is the place of a target on its bus: 0 for "sda".
func index(target string) uint { return uint(target[len(target)-1] - 'a') }

func slot(n uint) *libvirtxml.DomainAddress {
	var zero uint
	return &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{
		Domain: &zero, Bus: &zero, Slot: &n, Function: &zero,
	}}
}

// function places the n-th of many devices, eight to a slot.
func function(first, n uint) *libvirtxml.DomainAddress {
	address := slot(first + n/functions)
	number := n % functions
	address.PCI.Function = &number
	if number == 0 {
		address.PCI.MultiFunction = "on"
	}
	return address
}

func drive(controller, channel, unit uint) *libvirtxml.DomainAddress {
	var target uint
	return &libvirtxml.DomainAddress{Drive: &libvirtxml.DomainAddressDrive{
		Controller: &controller, Bus: &channel, Target: &target, Unit: &unit,
	}}
}
