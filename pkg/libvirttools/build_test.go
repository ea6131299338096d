package libvirttools_test

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// plainDomain is a VM as the demo makes it.
func plainDomain() libvirttools.Domain {
	return libvirttools.Domain{
		UUID:        "6f1c2c7e-9d1b-5b7a-8a1e-3d5f0c9b2a41",
		Name:        "ambipod-demo-vm-6f1c2c7e",
		Title:       "demo/vm",
		Owner:       "node-1",
		SandboxID:   strings.Repeat("5a", 32),
		ContainerID: strings.Repeat("c0", 32),
		MemoryBytes: 256 << 20,
		VCPUs:       1,
		Accel:       libvirttools.AccelTCG,
		Emulator:    "/usr/libexec/ambipod/vmwrapper",
		Env:         map[string]string{"VMFD_SOCK": "/run/ambipod/fd.sock", "VMFD_KEY": strings.Repeat("5a", 32)},
		Disks: []libvirttools.Disk{
			{
				Path: "/var/lib/ambipod/vms/c0/root.qcow2", Format: libvirttools.FormatQCOW2,
				Backing: &libvirttools.Disk{Path: "/var/lib/ambipod/images/base", Format: libvirttools.FormatQCOW2},
			},
			{Path: "/var/lib/ambipod/vms/c0/config.iso", Format: libvirttools.FormatRaw, CDROM: true},
		},
		Console:     libvirttools.Console{Socket: "/run/ambipod/vms/c0/console.sock", Log: "/var/lib/ambipod/vms/c0/console.log"},
		AgentSocket: "/run/ambipod/vms/c0/agent.sock",
		ExecSocket:  "/run/ambipod/vms/c0/exec.sock",
	}
}

// richDomain uses every field in a way other than plainDomain.
func richDomain() libvirttools.Domain {
	d := plainDomain()
	d.Title = `prod/<db> & "friends"`
	d.Owner = ""
	d.MemoryBytes = 4<<30 + 1
	d.VCPUs = 4
	d.Accel = libvirttools.AccelKVM
	d.CPUModel = libvirttools.CPUHostModel
	d.Env = nil
	d.AgentSocket = ""
	d.ExecSocket = ""
	d.Screen = true
	d.Shares = []libvirttools.Share{{Tag: "volume0", Socket: "/run/ambipod/vms/c0/0.sock"}, {Tag: "volume1", Socket: "/run/ambipod/vms/c0/1.sock"}}
	d.Disks = []libvirttools.Disk{
		{Path: "/dev/mapper/root", Device: true, Format: libvirttools.FormatRaw, Bus: libvirttools.BusVirtio, Serial: "root", Offset: 1 << 20, Size: 7 << 20},
		{Path: "/data,with&odd<name>.img", Format: libvirttools.FormatRaw, Bus: libvirttools.BusVirtio, Target: "vdc", ReadOnly: true},
		{Path: "/srv/b.raw", Format: libvirttools.FormatRaw, Bus: libvirttools.BusVirtio},
		{Path: "/srv/c.qcow2", Format: libvirttools.FormatQCOW2, Target: "sdb"},
		{Path: "/srv/d.raw", Format: libvirttools.FormatRaw},
		{Path: "/srv/cd.iso", Format: libvirttools.FormatRaw, Bus: libvirttools.BusIDE, CDROM: true, Target: "hdd"},
	}
	return d
}

// equippedDomain is for a guest of another kind: without virtio disks, with UEFI.
func equippedDomain() libvirttools.Domain {
	d := plainDomain()
	d.Machine = libvirttools.MachineQ35
	d.Firmware = libvirttools.Firmware{UEFI: true, SecureBoot: true, Variables: "/var/lib/ambipod/vms/c0/firmware.vars"}
	d.TPMSocket = "/run/ambipod/vms/c0/tpm.sock"
	d.Watchdog = libvirttools.WatchdogReset
	d.LocalTime = true
	d.Serial = "f7a3c1d2"
	d.HugePageBytes = 2 << 20
	for i := range d.Disks {
		d.Disks[i].Bus = libvirttools.BusSATA
	}
	return d
}

func TestBuildXMLGolden(t *testing.T) {
	t.Parallel()
	maximum := plainDomain()
	maximum.CPUModel = libvirttools.CPUMaximum
	maximum.MemoryBytes = 96 << 20
	kvm := plainDomain()
	kvm.Accel = libvirttools.AccelKVM
	kvm.DisableFeatures = []string{"arch-capabilities"}
	described := plainDomain()
	described.DisableFeatures = []string{"svm", "x2apic"}
	described.CPU = &libvirttools.CPU{
		Mode: "custom", Match: "exact", Check: "partial", Migratable: "on", Model: "core2duo", Fallback: "forbid", Vendor: "Intel",
		Features: []libvirttools.CPUFeature{{Policy: "require", Name: "svm"}},
	}
	oldUEFI := equippedDomain()
	oldUEFI.Machine, oldUEFI.Firmware.SecureBoot = libvirttools.MachinePC, false
	ninep := plainDomain()
	ninep.Shares = []libvirttools.Share{{Tag: "volume0", Folder: "/srv/data"}, {Tag: "volume1", Folder: "/srv/read", ReadOnly: true}}
	tuned := plainDomain()
	tuned.Disks = append(
		tuned.Disks,
		libvirttools.Disk{Path: "/vms/c0/disk-a.qcow2", Format: "qcow2", Serial: "a", Ephemeral: true},
		libvirttools.Disk{Path: "/vms/c0/disk-b.qcow2", Format: "qcow2", Serial: "b", Ephemeral: true, Cache: libvirttools.CacheNone, IO: libvirttools.IONative},
		libvirttools.Disk{Path: "/dev/vg/c", Device: true, Format: "raw", Bus: libvirttools.BusVirtio, Cache: libvirttools.CacheWriteBack},
		libvirttools.Disk{Path: "/dev/vg/d", Device: true, Format: "raw", IO: libvirttools.IOThreads, Discard: libvirttools.DiscardIgnore},
		libvirttools.Disk{Path: "/kubelet/e/disk.raw", Handed: "volume-e", Format: "raw", Serial: "e"},
		libvirttools.Disk{Path: "pool/image", Format: "raw", Serial: "f", RBD: &libvirttools.RBD{
			Monitors: []string{"10.0.0.1:6789", "[fd00::1]:3300"}, User: "libvirt", Secret: "c0 f",
		}},
		libvirttools.Disk{Path: "pool/open", Format: "raw", ReadOnly: true, RBD: &libvirttools.RBD{Monitors: []string{"mon:6789"}}},
	)
	for name, d := range map[string]libvirttools.Domain{
		"described": described, "tuned": tuned, "ninep": ninep, "equipped": equippedDomain(), "equipped-pc": oldUEFI,
		"plain": plainDomain(), "rich": richDomain(), "maximum": maximum, "kvm": kvm,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := libvirttools.BuildXML(d)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".xml")
			if *update {
				if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got+"\n"); diff != "" {
				t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", golden, diff)
			}
		})
	}
}

// vmwrapper's network cards would collide with a device at or above FirstNICSlot,
// or with one that libvirt places itself.
func TestEveryPCIDeviceIsBelowTheNICs(t *testing.T) {
	t.Parallel()
	d := richDomain()
	d.Watchdog = libvirttools.WatchdogReset
	d.Disks = append(d.Disks, libvirttools.Disk{Path: "/srv/sata", Format: libvirttools.FormatRaw, Bus: libvirttools.BusSATA})
	for i := len(d.Shares); i < 32; i++ {
		d.Shares = append(d.Shares, libvirttools.Share{Tag: "tag" + strconv.Itoa(i), Socket: "/s"})
	}
	for len(d.Disks) < 30 { // all that fit on virtio-blk
		d.Disks = append(d.Disks, libvirttools.Disk{Path: "/srv/more", Format: libvirttools.FormatRaw, Bus: libvirttools.BusVirtio})
	}
	text, err := libvirttools.BuildXML(d)
	if err != nil {
		t.Fatal(err)
	}
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	seen := make(map[[2]uint]string)
	check := func(what string, a *libvirtxml.DomainAddress) {
		t.Helper()
		if a == nil || a.PCI == nil {
			t.Errorf("%s has no PCI address of ours", what)
			return
		}
		slot, function := *a.PCI.Slot, *a.PCI.Function
		if slot <= 1 || slot >= libvirttools.FirstNICSlot {
			t.Errorf("%s is in slot %#x", what, slot)
		}
		place := [2]uint{slot, function}
		if seen[place] != "" {
			t.Errorf("%s and %s share slot %#x, function %d", what, seen[place], slot, function)
		}
		seen[place] = what
	}
	for _, c := range dom.Devices.Controllers {
		if c.Type != "usb" || c.Model != "none" {
			check("controller "+c.Type, c.Address)
		}
	}
	for _, disk := range dom.Devices.Disks {
		if disk.Target.Bus == "virtio" {
			check("disk "+disk.Target.Dev, disk.Address)
		}
	}
	for _, f := range dom.Devices.Filesystems {
		check("share "+f.Target.Dir, f.Address)
	}
	for _, v := range dom.Devices.Videos {
		check("video", v.Address)
	}
	for _, r := range dom.Devices.RNGs {
		check("rng", r.Address)
	}
	for _, w := range dom.Devices.Watchdogs {
		check("watchdog", w.Address)
	}
	check("balloon", dom.Devices.MemBalloon.Address)
	if len(dom.Devices.Interfaces) != 0 {
		t.Error("libvirt would place an interface itself")
	}
}

func TestBuildXMLRefuses(t *testing.T) {
	t.Parallel()
	type domain = libvirttools.Domain
	for name, test := range map[string]struct {
		spoil func(*domain)
		want  string // part of the sentence
	}{
		"no UUID":              {func(d *domain) { d.UUID = "" }, "UUID"},
		"UUID in braces":       {func(d *domain) { d.UUID = "{" + d.UUID + "}" }, "UUID"},
		"name with slash":      {func(d *domain) { d.Name = "../x" }, "domain name"},
		"name of an option":    {func(d *domain) { d.Name = "-x" }, "domain name"},
		"name with comma":      {func(d *domain) { d.Name = "a,debug-threads=off" }, "domain name"},
		"title with newline":   {func(d *domain) { d.Title = "a\nb" }, "title"},
		"owner with NUL":       {func(d *domain) { d.Owner = "a\x00" }, "owner"},
		"no sandbox":           {func(d *domain) { d.SandboxID = "" }, "sandbox ID"},
		"container with quote": {func(d *domain) { d.ContainerID = `x"` }, "container ID"},
		"no memory":            {func(d *domain) { d.MemoryBytes = 0 }, "memory"},
		"negative memory":      {func(d *domain) { d.MemoryBytes = -1 }, "memory"},
		"endless memory":       {func(d *domain) { d.MemoryBytes = math.MaxInt64 }, "memory"},
		"no CPU":               {func(d *domain) { d.VCPUs = 0 }, "CPUs"},
		"too many CPUs":        {func(d *domain) { d.VCPUs = 256 }, "CPUs"},
		"accelerator auto":     {func(d *domain) { d.Accel = "auto" }, "accelerator"},
		"odd CPU model":        {func(d *domain) { d.CPUModel = "max,+vmx" }, "CPU model"},
		"odd CPU feature":      {func(d *domain) { d.DisableFeatures = []string{"x2apic", ""} }, "CPU features"},
		"two CPUs":             {func(d *domain) { d.CPUModel, d.CPU = "Nehalem", &libvirttools.CPU{} }, "choose one"},
		"odd CPU word":         {func(d *domain) { d.CPU = &libvirttools.CPU{Model: "a,b"} }, `"a,b"`},
		"nameless feature":     {func(d *domain) { d.CPU = &libvirttools.CPU{Features: make([]libvirttools.CPUFeature, 1)} }, "no name"},
		"host mode, no KVM":    {func(d *domain) { d.CPU = &libvirttools.CPU{Mode: "host-model"} }, "needs KVM"},
		"host CPU without KVM": {func(d *domain) { d.CPUModel = libvirttools.CPUHost }, "needs KVM"},
		"relative emulator":    {func(d *domain) { d.Emulator = "qemu" }, "emulator"},
		"unclean emulator":     {func(d *domain) { d.Emulator = "/usr/../bin/sh" }, "emulator"},
		"odd variable":         {func(d *domain) { d.Env = map[string]string{"A=B": "c"} }, "environment"},
		"variable with NUL":    {func(d *domain) { d.Env = map[string]string{"A": "c\x00"} }, "environment variable A"},
		"no console log":       {func(d *domain) { d.Console.Log = "" }, "console log"},
		"long console socket":  {func(d *domain) { d.Console.Socket = "/" + strings.Repeat("x", 107) }, "107 bytes"},
		"relative exec":        {func(d *domain) { d.ExecSocket = "exec.sock" }, "exec socket"},
		"relative agent":       {func(d *domain) { d.AgentSocket = "agent.sock" }, "agent socket"},
		"no disk":              {func(d *domain) { d.Disks = nil }, "disk to boot from"},
		"format unsaid":        {func(d *domain) { d.Disks[0].Format = "" }, `format ""`},
		"backing unsaid":       {func(d *domain) { d.Disks[0].Backing.Format = "auto" }, `format "auto"`},
		"raw overlay":          {func(d *domain) { d.Disks[0].Format = "raw" }, "cannot lie over"},
		"over itself":          {func(d *domain) { d.Disks[0].Backing.Path = d.Disks[0].Path }, "over itself"},
		"part of qcow2":        {func(d *domain) { d.Disks[0].Offset, d.Disks[0].Size = 1, 1 }, "part of"},
		"part without end":     {func(d *domain) { d.Disks[1].Offset = 1 }, "part of"},
		"relative disk":        {func(d *domain) { d.Disks[0].Path = "root.qcow2" }, "path of disk"},
		"relative backing":     {func(d *domain) { d.Disks[0].Backing.Path = "json:{}" }, "path of disk"},
		"unknown bus":          {func(d *domain) { d.Disks[0].Bus = "usb" }, "bus"},
		"target of other bus":  {func(d *domain) { d.Disks[0].Target = "vda" }, "target"},
		"same target twice":    {func(d *domain) { d.Disks[0].Target, d.Disks[1].Target = "sda", "sda" }, "two disks"},
		"virtio CD-ROM":        {func(d *domain) { d.Disks[1].Bus = libvirttools.BusVirtio }, "CD-ROM"},
		"overlay handed over":  {func(d *domain) { d.Disks[0].Handed = "x" }, "handed over"},
		"Ceph without monitors": {func(d *domain) {
			d.Disks[0] = libvirttools.Disk{Path: "p/i", Format: "raw", RBD: &libvirttools.RBD{}}
		}, "needs monitors"},
		"Ceph without a secret": {func(d *domain) {
			d.Disks[0] = libvirttools.Disk{Path: "p/i", Format: "raw", RBD: &libvirttools.RBD{Monitors: []string{"m:1"}, User: "u"}}
		}, "name of a secret"},
		"Ceph without a port": {func(d *domain) {
			d.Disks[0] = libvirttools.Disk{Path: "p/i", Format: "raw", RBD: &libvirttools.RBD{Monitors: []string{"m"}}}
		}, "HOST:PORT"},
		"part of Ceph": {func(d *domain) {
			d.Disks[0] = libvirttools.Disk{Path: "p/i", Format: "raw", Size: 1, RBD: &libvirttools.RBD{Monitors: []string{"m:1"}}}
		}, "whole one"},
		"handed by odd name": {func(d *domain) { d.Disks[0].Backing, d.Disks[0].Handed = nil, "a,b" }, "handed over"},
		"odd serial":         {func(d *domain) { d.Disks[0].Serial = "a,b" }, "serial"},
		"long serial":        {func(d *domain) { d.Disks[0].Serial = strings.Repeat("x", 37) }, "serial"},
		"unknown cache":      {func(d *domain) { d.Disks[0].Cache = "writearound" }, `cache "writearound"`},
		"unknown io":         {func(d *domain) { d.Disks[0].IO = "aio" }, `io "aio"`},
		"unknown discard":    {func(d *domain) { d.Disks[0].Discard = "on" }, `discard "on"`},
		"cached native io":   {func(d *domain) { d.Disks[0].IO = libvirttools.IONative }, "needs the cache none or directsync"},
		"fifth IDE drive":    {func(d *domain) { d.Disks = many(5, libvirttools.BusIDE) }, "room for 4"},
		"27th virtio disk":   {func(d *domain) { d.Disks = many(27, libvirttools.BusVirtio) }, "room for 26"},
		"lonely virtio disk": {func(d *domain) {
			d.Disks = []libvirttools.Disk{{Path: "/x", Format: "raw", Bus: libvirttools.BusVirtio, Target: "vdj"}}
		}, "target vdi, which no disk has"},
		"33rd share":        {func(d *domain) { d.Shares = make([]libvirttools.Share, 33) }, "32 shared folders"},
		"tag unsaid":        {func(d *domain) { d.Shares = []libvirttools.Share{{Socket: "/s"}} }, `tag ""`},
		"tag with comma":    {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a,b", Socket: "/s"}} }, `tag "a,b"`},
		"same tag twice":    {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a", Socket: "/s"}, {Tag: "a", Socket: "/t"}} }, "two shared folders"},
		"relative socket":   {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a", Socket: "s"}} }, "shared folder"},
		"unknown machine":   {func(d *domain) { d.Machine = "microvm" }, `"microvm"`},
		"secure pc":         {func(d *domain) { d.Firmware = libvirttools.Firmware{UEFI: true, SecureBoot: true} }, "q35"},
		"UEFI unsaved":      {func(d *domain) { d.Firmware.UEFI = true }, "firmware variables"},
		"relative TPM":      {func(d *domain) { d.TPMSocket = "tpm" }, "TPM socket"},
		"unknown action":    {func(d *domain) { d.Watchdog = "explode" }, `"explode"`},
		"serial, comma":     {func(d *domain) { d.Serial = "a,uuid=b" }, "serial number"},
		"half a page":       {func(d *domain) { d.HugePageBytes = 3 << 20 }, "whole number of huge pages"},
		"IDE on q35":        {func(d *domain) { d.Machine, d.Disks[0].Bus = libvirttools.MachineQ35, libvirttools.BusIDE }, "use sata"},
		"7th SATA disk":     {func(d *domain) { d.Disks = many(7, libvirttools.BusSATA) }, "room for 6"},
		"server and folder": {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a", Socket: "/s", Folder: "/f"}} }, "choose one"},
		"relative folder":   {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a", Folder: "f"}} }, "shared folder"},
		"served, read-only": {func(d *domain) { d.Shares = []libvirttools.Share{{Tag: "a", Socket: "/s", ReadOnly: true}} }, "read-only"},
		"27th SCSI disk":    {func(d *domain) { d.Disks = many(27, libvirttools.BusSCSI) }, "room for 26"},
		"endless chain": {func(d *domain) {
			for i, layer := 0, d.Disks[0].Backing; i < 10; i, layer = i+1, layer.Backing {
				layer.Backing = &libvirttools.Disk{Path: "/img/" + string(rune('a'+i)), Format: "qcow2"}
			}
		}, "more than 7 images"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := plainDomain()
			test.spoil(&d)
			text, err := libvirttools.BuildXML(d)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want) || text != "" {
				t.Errorf("got %q, %v; want an ErrInvalidArgument about %q", text, err, test.want)
			}
		})
	}
}

func many(n int, bus string) []libvirttools.Disk {
	disks := make([]libvirttools.Disk, n)
	for i := range disks {
		disks[i] = libvirttools.Disk{Path: "/srv/x", Format: libvirttools.FormatRaw, Bus: bus}
	}
	return disks
}
