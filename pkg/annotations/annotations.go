// Package annotations defines what a pod's annotations can say about its VM: one
// table with every annotation's name, Virtlet alias, default, documentation and
// parser. docs/annotations.md is generated from the table (go generate).
//
// Parse is strict: a value that cannot be used, a name in Ambipod's own domain that
// the table does not have, and an annotation given under both of its names with
// different values are errors of class errdefs.ErrInvalidArgument, each one
// sentence that names the annotation, the value and what is allowed. Annotations of
// others are none of our business and are passed over.
package annotations

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Domain is the prefix of Ambipod's own annotations.
const Domain = "vm.ambipod.io/"

// MountScript stands, in user-data scripts written for Virtlet, for commands that mount
// the pod's volumes. A script may consist of it alone.
const MountScript = "@virtlet-mount-script@"

// Settings is what the annotations of a pod ask for; zero values ask for nothing.
type Settings struct {
	VCPUs         int    // number of virtual CPUs, 0 for as many as the CPU limit needs
	DiskBus       string // scsi, virtio or sata
	RootSize      int64  // bytes of the root disk, 0 for the image's size
	Disks         []Disk // disks beside those of volumes, and how disks are used
	Folders       string // how folders reach the guest: virtiofs, 9p, or "" for the node's way
	ReplaceRoot   bool   // a persistent root that was made from another image may be lost
	SystemUUID    string // SMBIOS system UUID, "" for a random one
	MetaData      string // cloud-init meta-data that overrides what is generated, YAML or JSON
	UserData      string // cloud-init user-data, a YAML mapping
	UserScript    string // cloud-init user-data, a script; in place of UserData
	SSHKeys       []string
	ForceDHCP     bool // no network configuration for cloud-init: the guest must ask by DHCP
	TargetRuntime string

	InstanceID        string // of cloud-init, "" for one that follows the pod's UID
	NetworkConfigV1   bool   // cloud-init's network configuration is of version 1
	Datasource        string // of cloud-init: nocloud or configdrive
	UserDataSource    Source // of user-data, under what UserData says
	UserDataKey       string // which entry of UserDataSource is all of the user-data, "" for a mapping of all entries
	UserDataBase64    bool   // that entry is encoded
	UserDataOverwrite bool   // UserData and SSHKeys replace their sources
	SSHKeySource      Source // of keys in addition to SSHKeys
	FilesSource       Source // of files that the guest is to have
	MountConfig       bool   // ConfigMaps and the like are mounted, not copied

	CPUModel string
	CPU      *CPU // in place of CPUModel
	Screen   bool

	Machine      string // pc or q35, "" for the usual one
	Firmware     string // bios, uefi or uefi-secure
	TPM          bool
	Watchdog     string // what it does, "" for none
	LocalTime    bool   // the clock shows the node's local time
	SerialNumber string // of the machine, "" for a derived one

	NICModel  string // virtio, e1000, e1000e or rtl8139
	NICQueues int    // of each network card, 0 for as many as there are CPUs to use them

	IngressBandwidth int64 // bit/s towards the guest, 0 for no limit
	EgressBandwidth  int64 // bit/s from the guest, 0 for no limit
	AllowSpoofing    bool  // the guest may send from other addresses than its own
}

// Annotation is one row of the table.
type Annotation struct {
	Name    string // canonical, in Domain
	Alias   string // Virtlet's name, "" where it had none
	Allowed string // what a value may be, for people
	Default string // what holds without it, for people
	Doc     string // one or two sentences

	parse func(*Settings, string) error
}

// Parse reads a pod's annotations.
func Parse(pod map[string]string) (Settings, error) {
	settings := Settings{DiskBus: busSCSI, Datasource: "nocloud", Firmware: FirmwareBIOS, NICModel: NICVirtio}
	known := map[string]bool{}
	for _, a := range Table {
		known[a.Name] = true
		name, value, err := a.lookup(pod)
		if err != nil {
			return Settings{}, err
		}
		if name == "" {
			continue
		}
		if err := a.parse(&settings, value); err != nil {
			return Settings{}, fmt.Errorf("annotation %s: value %q %w, allowed is %s: %w",
				name, abbreviate(value), err, a.Allowed, errdefs.ErrInvalidArgument)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pod)) {
		if strings.HasPrefix(name, Domain) && !known[name] {
			return Settings{}, fmt.Errorf("annotation %s is unknown, see docs/annotations.md for those that exist: %w",
				name, errdefs.ErrInvalidArgument)
		}
	}
	if settings.CPU != nil {
		settings.CPUModel = "" // a model would be part of the setting
	}
	return settings, settings.check()
}

// check looks at what annotations say together.
func (s Settings) check() error {
	switch {
	case s.UserData != "" && s.UserScript != "":
		return exclude("user-data", "user-data-script")
	case s.UserDataSource != Source{} && s.UserScript != "":
		return exclude("user-data-source", "user-data-script")
	case s.UserDataKey != "" && s.UserData != "" && !s.UserDataOverwrite:
		return exclude("user-data", "user-data-source-key")
	case s.UserDataKey != "" && s.UserDataSource == Source{}:
		return fmt.Errorf("annotation %s needs %s beside it: %w", Domain+"user-data-source-key", Domain+"user-data-source", errdefs.ErrInvalidArgument)
	case s.Firmware == FirmwareSecure && s.Machine == machinePC:
		return fmt.Errorf("annotation %s: the firmware %s needs the machine %s: %w", Domain+"machine", FirmwareSecure, machineQ35, errdefs.ErrInvalidArgument)
	case s.NICQueues > 1 && s.NICModel != NICVirtio:
		return fmt.Errorf("annotation %s: a network card of the model %s has one queue: %w", Domain+"nic-queues", s.NICModel, errdefs.ErrInvalidArgument)
	}
	return nil
}

func exclude(one, other string) error {
	return fmt.Errorf("annotations %s and %s exclude each other, remove one: %w", Domain+one, Domain+other, errdefs.ErrInvalidArgument)
}

// lookup finds an annotation under either name; "" when the pod has neither.
func (a Annotation) lookup(pod map[string]string) (name, value string, err error) {
	own, hasOwn := pod[a.Name]
	alias, hasAlias := pod[a.Alias]
	hasAlias = hasAlias && a.Alias != ""
	switch {
	case hasOwn && hasAlias && own != alias && a.Name != targetRuntime:
		return "", "", fmt.Errorf("annotations %s and %s are the same setting with different values %q and %q, remove one: %w",
			a.Name, a.Alias, abbreviate(own), abbreviate(alias), errdefs.ErrInvalidArgument)
	case hasOwn:
		return a.Name, own, nil
	case hasAlias:
		return a.Alias, alias, nil
	}
	return "", "", nil
}

// abbreviate keeps error texts readable when a value is a document.
func abbreviate(value string) string {
	const most = 60
	if len(value) <= most {
		return value
	}
	return value[:most] + "…"
}
