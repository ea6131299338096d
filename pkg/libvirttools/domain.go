package libvirttools

// Accelerators that a domain can run with.
const (
	AccelKVM = "kvm"
	AccelTCG = "tcg"
)

// Disk formats. They are stated and never probed, since a guest could write a
// header of another format into its raw disk.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// Buses that a disk can sit on. Each takes up to 26 disks, if not said otherwise.
const (
	BusSCSI   = "scsi"   // virtio-scsi: discard, CD-ROMs; the default
	BusVirtio = "virtio" // virtio-blk: no CD-ROMs
	BusSATA   = "sata"   // for guests without virtio: at most six
	BusIDE    = "ide"    // for old guests without virtio, on MachinePC: at most four
)

// Cache modes: how much of a disk's data the node keeps in its memory.
const (
	CacheNone         = "none"
	CacheWriteThrough = "writethrough"
	CacheWriteBack    = "writeback"
	CacheDirectSync   = "directsync"
	CacheUnsafe       = "unsafe" // even what the guest flushes
)

// Ways of asynchronous I/O.
const (
	IOThreads = "threads"
	IONative  = "native"
)

// What becomes of blocks that the guest frees.
const (
	DiscardUnmap  = "unmap" // the node gets them back
	DiscardIgnore = "ignore"
)

// CPU models that are modes of libvirt; every other one is a name from libvirt's
// CPU map, for example "Nehalem".
const (
	CPUHost      = "host-passthrough" // needs KVM
	CPUHostModel = "host-model"       // needs KVM
	CPUMaximum   = "maximum"          // all that the accelerator can do
)

// Domain describes a virtual machine. The zero value of an optional field means
// the default named at the field.
type Domain struct {
	UUID  string // of the domain and of the guest's SMBIOS, in 8-4-4-4-12 form
	Name  string // unique on the node; letters, digits and "_.+-"
	Title string // for people who use virsh; optional

	Owner       string // which Ambipod node; see Options.Owner
	SandboxID   string // CRI ID
	ContainerID string // CRI ID

	MemoryBytes int64  // of the guest; rounded up to KiB
	VCPUs       int    // 1 to maxVCPUs
	Accel       string // AccelKVM or AccelTCG
	CPUModel    string // default: CPUHost with KVM, defaultTCGCPU with TCG
	CPU         *CPU   // in place of CPUModel; optional
	// DisableFeatures are names from libvirt's CPU map that the guest must not see;
	// accel.Choice knows them.
	DisableFeatures []string

	Machine       string   // default MachinePC
	Firmware      Firmware // default: BIOS
	TPMSocket     string   // where a TPM 2.0's emulator listens for its control connection; default: no TPM
	Watchdog      string   // what the watchdog does; default: no watchdog
	LocalTime     bool     // the clock shows the node's local time and not UTC
	Serial        string   // of the machine, for SMBIOS; optional
	HugePageBytes int64    // size of the pages behind the guest's memory; 0 for the node's usual ones

	Emulator string            // absolute path of vmwrapper or QEMU
	Env      map[string]string // of the emulator's process, over its clean environment

	Disks       []Disk // the first one boots
	Shares      []Share
	Console     Console
	AgentSocket string // of org.qemu.guest_agent.0; default: libvirt chooses a path
	ExecSocket  string // of ExecChannel; default: the guest has no such channel
	Screen      bool   // a graphics card, see Client.OpenScreen; default: none
}

// CPU is a processor in the words of libvirt's domain format; an empty field is
// libvirt's to decide.
type CPU struct {
	Mode, Match, Check, Migratable string
	Model, Fallback, Vendor        string
	Features                       []CPUFeature
}

// CPUFeature is a name from libvirt's CPU map and whether guests have it.
type CPUFeature struct{ Policy, Name string }

// Disk is a disk of the guest, backed by a file or a block device of the node.
type Disk struct {
	Path   string // absolute; of RBD, POOL/IMAGE
	Device bool   // Path is a block device and no file
	RBD    *RBD   // the disk is in a Ceph cluster; nil for one of the node
	Format string // FormatQCOW2 or FormatRaw
	// Offset and Size, in bytes, are the part of a raw disk that the guest has; all of
	// it if Size is 0.
	Offset, Size int64
	// Backing is the image under a qcow2 overlay. It is opened read-only, and its
	// file keeps its owner, whereas the overlay's is given to QEMU's user.
	Backing  *Disk
	Bus      string // default BusSCSI
	Target   string // "sda", "vdb" …: orders the disks of a bus; default: next free
	Serial   string // as seen in the guest's /dev/disk/by-id; optional
	ReadOnly bool
	CDROM    bool // implies ReadOnly
	// Ephemeral says that the disk ends with the VM, so that the guest's flushes need
	// not wait for the node's disk, and neither need QEMU when it is told to end.
	Ephemeral bool
	// Handed says that QEMU's user cannot reach the file, and Start is given it open,
	// for reading and writing, under this name. Empty for a disk that QEMU opens.
	Handed string
	// Cache, IO and Discard are libvirt's words for its driver element; each has a
	// default that suits the kind of disk.
	Cache   string // CacheNone …
	IO      string // IOThreads or IONative, which needs CacheNone or CacheDirectSync
	Discard string // DiscardUnmap or DiscardIgnore
}

// RBD is a Ceph cluster that QEMU reaches by itself.
type RBD struct {
	Monitors []string // HOST:PORT
	User     string   // "" for a cluster that wants none
	// Secret is the name under which Start is given the user's key.
	Secret string
}

// Share is a folder that the guest mounts with the file system type virtiofs. Its
// server is not libvirt's but the caller's, so that it can be put into the pod's
// control group and can serve read-only.
type Share struct {
	Tag    string // by which the guest mounts it; unique, up to maxTagLength bytes
	Socket string // where the folder's vhost-user server listens
	// Folder, in place of Socket, is one that QEMU itself serves, as its own user, by the
	// file system type 9p.
	Folder   string
	ReadOnly bool // a Folder
}

// Console is the first serial port of the guest.
type Console struct {
	Socket string // unix socket for one interactive client, made by libvirt
	Log    string // file that virtlogd appends all output to
}

// AgentChannel is the virtio-serial port that the guest's qemu-guest-agent opens.
const AgentChannel = "org.qemu.guest_agent.0"

// ExecChannel is the virtio-serial port over which commands in the guest have their
// streams; see pkg/guestexec.
const ExecChannel = "org.ambipod.exec.0"

// defaultTCGCPU runs what distributions built for x86-64-v2 need, which QEMU's own
// default does not, and avoids the wide vector units that TCG emulates slowly.
const defaultTCGCPU = "Nehalem"

const (
	maxVCPUs  = 255 // what machine type "pc" can have without x2APIC
	functions = 8   // devices that share a PCI slot
	maxShares = (slotEnd - slotFirstShare) * functions
)

// PCI slots on the machine's only bus. Slots 0 and 1, and 31 of MachineQ35, are the
// chipset's.
const (
	slotVideo   = 0x02
	slotSCSI    = 0x03
	slotSerial  = 0x04
	slotBalloon = 0x05
	slotRNG     = 0x06

	slotFirstDisk  = 0x07 // virtio-blk disks, eight to a slot
	slotFirstShare = 0x0b // shared folders, likewise
	slotEnd        = 0x0f
	slotSATA       = 0x0f // of MachinePC; the other has one in its chipset

	// FirstNICSlot is where vmwrapper puts the network cards that it appends to
	// QEMU's command line, one slot each. libvirt knows nothing of them, so this
	// package never assigns a slot from here on, and leaves none for libvirt to
	// choose: a device without an address could get a card's slot.
	FirstNICSlot = 0x10
)
