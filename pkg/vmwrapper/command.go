// Package vmwrapper is the program that libvirt starts in QEMU's place: it
// fetches the VM's network descriptors from vmruntime, adds the network cards to
// the command line, and becomes QEMU.
//
// libvirt also starts it without a key to ask for QEMU's capabilities; then it
// becomes QEMU with the command line as it is. It runs as QEMU's unprivileged
// user, holds no state, and imports next to nothing, for it is started with
// every VM. What goes wrong is said on standard error, which libvirt reports as
// QEMU's last words.
package vmwrapper

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
)

// models are the network cards that can be had, and whether they are virtio
// devices, which take an MTU and can be served by the kernel.
var models = map[string]bool{
	fdproto.ModelVirtio: true,
	"e1000":             false,
	"e1000e":            false,
	"rtl8139":           false,
}

var busPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

const (
	defaultBus = "pci.0"
	maxSlot    = 31
	minMTU     = 68
	maxMTU     = 65535
)

// Command returns QEMU's command line: args with the network cards added, whose
// descriptors are fds in the order that package fdproto defines.
func Command(args []string, nics []fdproto.NIC, fds []int) ([]string, error) {
	out := slices.Clone(args)
	for i, nic := range nics {
		model, bus := nic.Model, nic.Bus
		if model == "" {
			model = fdproto.ModelVirtio
		}
		if bus == "" {
			bus = defaultBus
		}
		if err := check(nic, model, bus); err != nil {
			return nil, fmt.Errorf("network card %d: %w", i, err)
		}
		need := 1
		if nic.VHost {
			need = 2
		}
		if len(fds) < need {
			return nil, fmt.Errorf("network card %d: its descriptor is missing", i)
		}
		id := strconv.Itoa(i)
		netdev := "tap,id=ambipod-net" + id + ",fd=" + strconv.Itoa(fds[0])
		if nic.VHost {
			netdev += ",vhost=on,vhostfd=" + strconv.Itoa(fds[1])
		}
		// Without romfile= QEMU looks for a boot ROM that may not be installed.
		device := fmt.Sprintf("%s,netdev=ambipod-net%s,id=ambipod-nic%s,mac=%s,bus=%s,addr=%#x,romfile=", model, id, id, nic.MAC, bus, nic.Slot)
		if nic.MTU > 0 && models[model] {
			device += ",host_mtu=" + strconv.Itoa(nic.MTU)
		}
		out = append(out, "-netdev", netdev, "-device", device)
		fds = fds[need:]
	}
	return out, nil
}

// check keeps everything out of the command line that is not what it should be.
func check(nic fdproto.NIC, model, bus string) error {
	virtio, known := models[model]
	mac, err := net.ParseMAC(nic.MAC)
	switch {
	case err != nil || len(mac) != 6:
		return fmt.Errorf("MAC address %q is not valid", nic.MAC)
	case !known:
		return fmt.Errorf("model %q is not known", model)
	case nic.VHost && !virtio:
		return fmt.Errorf("model %q cannot be served by vhost-net", model)
	case !busPattern.MatchString(bus):
		return fmt.Errorf("bus %q is not valid", bus)
	case nic.Slot < 1 || nic.Slot > maxSlot:
		return fmt.Errorf("PCI slot %d is not between 1 and %d", nic.Slot, maxSlot)
	case nic.MTU != 0 && (nic.MTU < minMTU || nic.MTU > maxMTU):
		return fmt.Errorf("MTU %d is not between %d and %d", nic.MTU, minMTU, maxMTU)
	}
	return nil
}
