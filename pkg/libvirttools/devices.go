package libvirttools

import (
	"cmp"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// devices lists all hardware. Each PCI device has its address; see FirstNICSlot.
func devices(d Domain, targets []string) *libvirtxml.DomainDeviceList {
	list := &libvirtxml.DomainDeviceList{
		Emulator:    d.Emulator,
		Controllers: controllers(d),
		Serials:     []libvirtxml.DomainSerial{serial(d.Console)},
		Channels:    channels(d),
		MemBalloon: &libvirtxml.DomainMemBalloon{
			Model:             "virtio",
			AutoDeflate:       "on", // rather than let the guest run out of memory
			FreePageReporting: "on", // the guest's free pages go back to the node
			Stats:             &libvirtxml.DomainMemBalloonStats{Period: balloonPeriod},
			Address:           slot(slotBalloon),
		},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			Address: slot(slotRNG),
		}},
		// A guest's kernel panic becomes an event instead of a silent halt.
		Panics: []libvirtxml.DomainPanic{{Model: "isa"}},
	}
	for i, one := range d.Disks {
		list.Disks = append(list.Disks, disk(one, targets[i], i == 0))
	}
	for i, one := range d.Shares {
		list.Filesystems = append(list.Filesystems, share(one, uint(i)))
	}
	if d.Screen {
		addScreen(list)
	}
	addHardware(list, d)
	return list
}

func controllers(d Domain) []libvirtxml.DomainController {
	var first uint
	list := []libvirtxml.DomainController{
		{Type: "scsi", Index: &first, Model: "virtio-scsi", Address: slot(slotSCSI)},
		{Type: "virtio-serial", Index: &first, Address: slot(slotSerial)},
		// An idle USB controller wakes QEMU up many times a second.
		{Type: "usb", Index: &first, Model: "none"},
	}
	if d.machine() == MachinePC && slices.ContainsFunc(d.Disks, func(disk Disk) bool { return disk.bus() == BusSATA }) {
		list = append(list, libvirtxml.DomainController{Type: "sata", Index: &first, Address: slot(slotSATA)})
	}
	return list
}

func disk(d Disk, target string, boots bool) libvirtxml.DomainDisk {
	out := libvirtxml.DomainDisk{
		Device:       "disk",
		Driver:       &libvirtxml.DomainDiskDriver{Name: "qemu", Type: d.Format},
		Source:       source(d, nil),
		BackingStore: backing(d.Backing),
		Target:       &libvirtxml.DomainDiskTarget{Dev: target, Bus: d.bus()},
		Serial:       d.Serial,
		Address:      buses[d.bus()].address(index(target)),
	}
	if d.CDROM {
		out.Device = "cdrom"
	}
	if d.ReadOnly || d.CDROM {
		out.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	setDriver(out.Driver, d)
	if boots {
		out.Boot = &libvirtxml.DomainDeviceBoot{Order: 1}
	}
	return out
}

// setDriver says how QEMU reads and writes a disk.
func setDriver(driver *libvirtxml.DomainDiskDriver, d Disk) {
	switch {
	case d.RBD != nil:
		driver.Cache = CacheNone
	case d.Device:
		// Another node may write to it next: nothing of it stays in this one's memory.
		driver.Cache, driver.IO = CacheNone, IONative
	case d.Ephemeral:
		driver.Cache = CacheUnsafe
	}
	if !d.ReadOnly && !d.CDROM {
		driver.Discard = DiscardUnmap // what the guest frees, the node gets back
	}
	if d.Cache != "" {
		driver.Cache = d.Cache
		if !uncached(d.Cache) {
			driver.IO = ""
		}
	}
	driver.IO, driver.Discard = cmp.Or(d.IO, driver.IO), cmp.Or(d.Discard, driver.Discard)
}

// uncached says whether QEMU goes past the page cache, without which it cannot use
// the kernel's own asynchronous I/O.
func uncached(cache string) bool { return cache == CacheNone || cache == CacheDirectSync }

// backing states the whole chain under a disk; its empty end tells libvirt not to
// look into the files for more.
func backing(d *Disk) *libvirtxml.DomainDiskBackingStore {
	if d == nil {
		return &libvirtxml.DomainDiskBackingStore{}
	}
	return &libvirtxml.DomainDiskBackingStore{
		Format: &libvirtxml.DomainDiskFormat{Type: d.Format},
		// One image serves many VMs: it must not become the property of the user
		// that they run as.
		Source:       source(*d, []libvirtxml.DomainDeviceSecLabel{{Model: "dac", Relabel: "no"}}),
		BackingStore: backing(d.Backing),
	}
}

func source(d Disk, label []libvirtxml.DomainDeviceSecLabel) *libvirtxml.DomainDiskSource {
	out := &libvirtxml.DomainDiskSource{}
	if d.RBD != nil {
		out.Network = rbd(d)
	} else if d.Device {
		out.Block = &libvirtxml.DomainDiskSourceBlock{Dev: d.Path, SecLabel: label}
	} else {
		out.File = &libvirtxml.DomainDiskSourceFile{File: d.Path, FDGroup: d.Handed, SecLabel: label}
	}
	if d.Size > 0 {
		out.Slices = &libvirtxml.DomainDiskSlices{Slices: []libvirtxml.DomainDiskSlice{{
			Type: "storage", Offset: uint(d.Offset), Size: uint(d.Size), //nolint:gosec // validated
		}}}
	}
	return out
}

func share(s Share, n uint) libvirtxml.DomainFilesystem {
	if s.Folder != "" {
		return folder(s, n)
	}
	return libvirtxml.DomainFilesystem{
		Driver:  &libvirtxml.DomainFilesystemDriver{Type: "virtiofs"},
		Source:  &libvirtxml.DomainFilesystemSource{Mount: &libvirtxml.DomainFilesystemSourceMount{Socket: s.Socket}},
		Target:  &libvirtxml.DomainFilesystemTarget{Dir: s.Tag},
		Address: function(slotFirstShare, n),
	}
}

// folder is served by QEMU. It is no privileged user, so it owns whatever the guest
// makes, and what the guest wants to be owned otherwise is passed over.
func folder(s Share, n uint) libvirtxml.DomainFilesystem {
	out := libvirtxml.DomainFilesystem{
		AccessMode: "squash",
		MultiDevs:  "remap", // files of several file systems have numbers of their own
		Driver:     &libvirtxml.DomainFilesystemDriver{Type: "path"},
		Source:     &libvirtxml.DomainFilesystemSource{Mount: &libvirtxml.DomainFilesystemSourceMount{Dir: s.Folder}},
		Target:     &libvirtxml.DomainFilesystemTarget{Dir: s.Tag},
		Address:    function(slotFirstShare, n),
	}
	if s.ReadOnly {
		out.ReadOnly = &libvirtxml.DomainFilesystemReadOnly{}
	}
	return out
}

func serial(c Console) libvirtxml.DomainSerial {
	var port uint
	return libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: c.Socket}},
		Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: &port},
		Log:    &libvirtxml.DomainChardevLog{File: c.Log, Append: "on"},
	}
}

func channels(d Domain) []libvirtxml.DomainChannel {
	list := []libvirtxml.DomainChannel{channel(AgentChannel, d.AgentSocket)}
	if d.ExecSocket != "" {
		list = append(list, channel(ExecChannel, d.ExecSocket))
	}
	return list
}

func channel(name, socket string) libvirtxml.DomainChannel {
	source := &libvirtxml.DomainChardevSourceUNIX{}
	if socket != "" {
		source.Mode, source.Path = "bind", socket
	}
	return libvirtxml.DomainChannel{
		Source: &libvirtxml.DomainChardevSource{UNIX: source},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: name}},
	}
}

// addScreen gives the VM a graphics card whose picture is served on a unix socket,
// never on TCP. libvirt chooses its path, since QEMU itself makes the socket and
// needs a folder that it may write to.
func addScreen(list *libvirtxml.DomainDeviceList) {
	list.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{
		Listeners: []libvirtxml.DomainGraphicListener{{Socket: &libvirtxml.DomainGraphicListenerSocket{}}},
	}}}
	list.Videos = []libvirtxml.DomainVideo{{
		Model:   libvirtxml.DomainVideoModel{Type: "vga", Heads: 1},
		Address: slot(slotVideo),
	}}
}
