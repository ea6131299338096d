package annotations

import (
	"errors"
	"regexp"
)

// Values of the annotation firmware.
const (
	FirmwareBIOS   = "bios"
	FirmwareUEFI   = "uefi"
	FirmwareSecure = "uefi-secure"
)

// NICVirtio is the model of network cards that they have unless another is asked for.
const NICVirtio = "virtio"

// MaxNICQueues is how many queues a network card can have.
const MaxNICQueues = 8

const (
	machinePC  = "pc"
	machineQ35 = "q35"
)

var (
	instanceID   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,254}$`)
	serialNumber = regexp.MustCompile(`^[A-Za-z0-9_.+-]{1,64}$`)
)

// machine is what the VM looks like to a guest.
var machine = []Annotation{
	{
		Name:    Domain + "machine",
		Allowed: "`pc` or `q35`", Default: "`pc`; `q35` with the firmware `uefi-secure`",
		Doc:   "The machine's chipset: i440FX with conventional PCI, to which devices can be added while it runs, or Q35 with PCI Express.",
		parse: oneOf(func(s *Settings) *string { return &s.Machine }, machinePC, machineQ35),
	},
	{
		Name:    Domain + "firmware",
		Allowed: "`bios`, `uefi` or `uefi-secure`", Default: "`bios`",
		Doc: "What starts the guest's boot loader. UEFI needs the Debian package `ovmf` on the node; its settings are kept in a file that ends with " +
			"the VM. `uefi-secure` starts only what Microsoft's keys have signed, which most distributions' boot loaders are.",
		parse: oneOf(func(s *Settings) *string { return &s.Firmware }, FirmwareBIOS, FirmwareUEFI, FirmwareSecure),
	},
	{
		Name:    Domain + "tpm",
		Allowed: "`2.0` or `none`", Default: "`none`",
		Doc: "Gives the VM a TPM, emulated by swtpm (Debian package `swtpm` on the node). What the guest trusts to it ends with the VM.",
		parse: func(s *Settings, value string) error {
			s.TPM = value == "2.0"
			return among(value, "2.0", "none")
		},
	},
	{
		Name:    Domain + "watchdog",
		Allowed: "`reset`, `poweroff`, `shutdown` or `inject-nmi`", Default: "no watchdog",
		Doc: "Gives the VM a watchdog (i6300ESB) and says what happens when the guest, once it has opened it, stops to feed it: the guest is reset, " +
			"switched off, asked to power off, or interrupted so that its kernel panics and says why. A VM that was switched off is restarted as the pod's " +
			"`restartPolicy` says.",
		parse: oneOf(func(s *Settings) *string { return &s.Watchdog }, "reset", "poweroff", "shutdown", "inject-nmi"),
	},
	{
		Name:    Domain + "clock",
		Allowed: "`utc` or `localtime`", Default: "`utc`",
		Doc: "What the machine's clock shows when the VM starts. Windows takes it for local time.",
		parse: func(s *Settings, value string) error {
			s.LocalTime = value == "localtime"
			return among(value, "utc", "localtime")
		},
	},
	{
		Name:    Domain + "serial-number",
		Allowed: "up to 64 letters, digits and `_.+-`", Default: "the pod's UID",
		Doc: "The machine's serial number, which the guest reads from its SMBIOS tables (`/sys/class/dmi/id/product_serial`).",
		parse: func(s *Settings, value string) error {
			s.SerialNumber = value
			if !serialNumber.MatchString(value) {
				return errors.New("is no serial number")
			}
			return nil
		},
	},
	{
		Name:    Domain + "nic-model",
		Allowed: "`virtio`, `e1000`, `e1000e` or `rtl8139`", Default: "`virtio`",
		Doc:   "The network cards that the guest sees. The others are slow and for guests without virtio.",
		parse: oneOf(func(s *Settings) *string { return &s.NICModel }, NICVirtio, "e1000", "e1000e", "rtl8139"),
	},
	{
		Name:    Domain + "nic-queues",
		Allowed: "a whole number from 1 to 8", Default: "one for each virtual CPU, at most 8",
		Doc: "Number of queues of each network card, so that several CPUs of the guest can use it at once. Models other than `virtio` have one.",
		parse: func(s *Settings, value string) (err error) {
			s.NICQueues, err = wholeNumber(value, 1, MaxNICQueues)
			return err
		},
	},
}
