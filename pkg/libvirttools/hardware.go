package libvirttools

import (
	"slices"

	"libvirt.org/go/libvirtxml"
)

// Machine types: the chipsets that a guest can have.
const (
	MachinePC  = "pc"  // i440FX with conventional PCI: guests of any age; the default
	MachineQ35 = "q35" // ICH9 with PCI Express and SATA
)

// Firmware is what starts the guest's boot loader.
type Firmware struct {
	UEFI bool // else BIOS
	// SecureBoot makes the firmware start only what Microsoft's keys have signed; it
	// needs UEFI and MachineQ35, whose system management mode keeps the keys.
	SecureBoot bool
	// Variables is the file of the firmware's settings, required with UEFI. libvirt
	// makes it when the VM starts and Undefine removes it.
	Variables string
}

// What the watchdog of a VM does when its guest has stopped to feed it.
const (
	WatchdogReset     = "reset"
	WatchdogPoweroff  = "poweroff"
	WatchdogShutdown  = "shutdown"
	WatchdogInjectNMI = "inject-nmi"
)

var watchdogActions = []string{WatchdogReset, WatchdogPoweroff, WatchdogShutdown, WatchdogInjectNMI}

// maxSMBIOSSerial is what fits into QEMU's table with room to spare.
const maxSMBIOSSerial = 64

func (d Domain) machine() string {
	if d.Machine == "" {
		return MachinePC
	}
	return d.Machine
}

// PCIBus is QEMU's name of the bus on which all devices of a machine type are.
func PCIBus(machine string) string {
	if machine == MachineQ35 {
		return "pcie.0"
	}
	return "pci.0"
}

func (d Domain) validateHardware() error {
	switch {
	case d.machine() != MachinePC && d.machine() != MachineQ35:
		return invalid("machine type %q is neither %s nor %s", d.Machine, MachinePC, MachineQ35)
	case d.Firmware.SecureBoot && (!d.Firmware.UEFI || d.machine() != MachineQ35):
		return invalid("secure boot needs UEFI and the machine type %s", MachineQ35)
	case d.Watchdog != "" && !slices.Contains(watchdogActions, d.Watchdog):
		return invalid("watchdog action %q is none of %q", d.Watchdog, watchdogActions)
	case d.Serial != "" && (!serialPattern.MatchString(d.Serial) || len(d.Serial) > maxSMBIOSSerial):
		return invalid("serial number %q of the machine must be up to %d letters, digits, dots, pluses, dashes and underscores", d.Serial, maxSMBIOSSerial)
	case d.HugePageBytes < 0 || d.HugePageBytes%kib != 0:
		return invalid("%d bytes is no size of huge pages", d.HugePageBytes)
	case d.HugePageBytes > 0 && d.MemoryBytes%d.HugePageBytes != 0:
		return invalid("%d bytes of memory are no whole number of huge pages of %d bytes", d.MemoryBytes, d.HugePageBytes)
	case d.machine() == MachineQ35 && slices.ContainsFunc(d.Disks, func(disk Disk) bool { return disk.bus() == BusIDE }):
		return invalid("the machine type %s has no IDE bus, use sata", MachineQ35)
	}
	if d.Firmware.UEFI {
		if err := validatePath("firmware variables", d.Firmware.Variables); err != nil {
			return err
		}
	}
	if d.TPMSocket != "" {
		return validateSocket("TPM socket", d.TPMSocket)
	}
	return nil
}

// bootEnvironment is the machine as its firmware finds it. Which firmware files there
// are is libvirt's to know: it picks one by the features.
func bootEnvironment(d Domain) *libvirtxml.DomainOS {
	out := &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: d.machine(), Type: "hvm"}}
	if d.Serial != "" {
		out.SMBios = &libvirtxml.DomainSMBios{Mode: "sysinfo"}
	}
	if !d.Firmware.UEFI {
		return out
	}
	secure := "no"
	if d.Firmware.SecureBoot {
		secure = "yes"
	}
	out.Firmware = "efi"
	out.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{
		{Enabled: secure, Name: "enrolled-keys"},
		{Enabled: secure, Name: "secure-boot"},
	}}
	out.NVRam = &libvirtxml.DomainNVRam{NVRam: d.Firmware.Variables}
	return out
}

// systemInformation is what the guest reads from SMBIOS beside its UUID.
func systemInformation(d Domain) []libvirtxml.DomainSysInfo {
	if d.Serial == "" {
		return nil
	}
	return []libvirtxml.DomainSysInfo{{SMBIOS: &libvirtxml.DomainSysInfoSMBIOS{
		System: &libvirtxml.DomainSysInfoSystem{Entry: []libvirtxml.DomainSysInfoEntry{{Name: "serial", Value: d.Serial}}},
	}}}
}

// addHardware adds the devices that few VMs have.
func addHardware(list *libvirtxml.DomainDeviceList, d Domain) {
	if d.TPMSocket != "" {
		source := libvirtxml.DomainTPMBackendExternalSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "connect", Path: d.TPMSocket}}
		list.TPMs = []libvirtxml.DomainTPM{{
			Model:   "tpm-crb", // what Windows 11 and Linux expect of a TPM 2.0
			Backend: &libvirtxml.DomainTPMBackend{External: &libvirtxml.DomainTPMBackendExternal{Source: &source}},
		}}
	}
	if d.Watchdog != "" {
		list.Watchdogs = []libvirtxml.DomainWatchdog{{Model: "i6300esb", Action: d.Watchdog, Address: function(slotRNG, 1)}}
		// A guest looks for a slot's other functions only if the first one says so.
		list.RNGs[0].Address.PCI.MultiFunction = "on"
	}
}
