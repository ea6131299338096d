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
	"strings"

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
		queues := nic.Pairs()
		need := queues
		if nic.VHost {
			need = 2 * queues
		}
		if len(fds) < need {
			return nil, fmt.Errorf("network card %d: descriptors are missing", i)
		}
		id := strconv.Itoa(i)
		netdev := "tap,id=ambipod-net" + id + descriptors(",fd", fds[:queues])
		if nic.VHost {
			netdev += ",vhost=on" + descriptors(",vhostfd", fds[queues:need])
		}
		// Without romfile= QEMU looks for a boot ROM that may not be installed.
		device := fmt.Sprintf("%s,netdev=ambipod-net%s,id=ambipod-nic%s,mac=%s,bus=%s,addr=%#x,romfile=", model, id, id, nic.MAC, bus, nic.Slot)
		if nic.MTU > 0 && models[model] {
			device += ",host_mtu=" + strconv.Itoa(nic.MTU)
		}
		if queues > 1 {
			// An interrupt for each direction of each queue, and two for the rest
			// (virtio 1.2, 5.1).
			device += ",mq=on,vectors=" + strconv.Itoa(2*queues+2)
		}
		out = append(out, "-netdev", netdev, "-device", device)
		fds = fds[need:]
	}
	return out, nil
}

// descriptors are an option for one, or another option for many.
func descriptors(option string, fds []int) string {
	if len(fds) == 1 {
		return option + "=" + strconv.Itoa(fds[0])
	}
	words := make([]string, len(fds))
	for i, fd := range fds {
		words[i] = strconv.Itoa(fd)
	}
	return option + "s=" + strings.Join(words, ":")
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
	case nic.Queues < 0 || nic.Queues > fdproto.MaxQueues:
		return fmt.Errorf("%d queues are not between 1 and %d", nic.Queues, fdproto.MaxQueues)
	case nic.Pairs() > 1 && !virtio:
		return fmt.Errorf("model %q cannot have several queues", model)
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
