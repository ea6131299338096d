package libvirttools

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// virtTypes are libvirt's names of the accelerators.
var virtTypes = map[string]string{AccelKVM: "kvm", AccelTCG: "qemu"}

// CheckEmulator has libvirtd run an emulator and ask what it can do, which it does
// once and keeps. It takes seconds; without it the first Define has to wait for them.
// It fails when libvirtd cannot run the emulator, or not with the accelerator.
func (c *Client) CheckEmulator(ctx context.Context, emulator, accel string) error {
	_, err := act(ctx, c, func(conn *libvirt.Connect) (string, error) {
		return conn.GetDomainCapabilities(emulator, "x86_64", "pc", virtTypes[accel], 0)
	})
	if err != nil {
		return fmt.Errorf("check emulator %s with %s: %w", emulator, accel, err)
	}
	return nil
}

// Abilities is what VMs can have on this node beyond what every QEMU brings along.
type Abilities struct {
	UEFI       bool `json:"uefi"`
	SecureBoot bool `json:"secureBoot"` // with the machine type that was asked about

	CPUModels []string `json:"-"` // names of processors that the emulator knows
}

// Abilities asks libvirtd which firmware it finds for a machine type, and which
// processors the emulator knows. It looks anew
// each time, so that what is installed later counts.
func (c *Client) Abilities(ctx context.Context, emulator, accel, machine string) (Abilities, error) {
	text, err := look(ctx, c, func(conn *libvirt.Connect) (string, error) {
		return conn.GetDomainCapabilities(emulator, "x86_64", machine, virtTypes[accel], 0)
	})
	if err != nil {
		return Abilities{}, fmt.Errorf("ask libvirt what machine %s can have: %w", machine, err)
	}
	return parseAbilities(text)
}

func parseAbilities(text string) (Abilities, error) {
	var found libvirtxml.DomainCaps
	if err := found.Unmarshal(text); err != nil {
		return Abilities{}, fmt.Errorf("read what libvirt says of its abilities: %w: %w", err, errdefs.ErrDataLoss)
	}
	var able Abilities
	if found.OS != nil {
		able.UEFI = offers(found.OS.Enums, "firmware", "efi")
		able.SecureBoot = able.UEFI && found.OS.Loader != nil && offers(found.OS.Loader.Enums, "secure", "yes")
	}
	if found.CPU == nil {
		return able, nil
	}
	for _, mode := range found.CPU.Modes {
		if mode.Name != "custom" {
			continue
		}
		for _, model := range mode.Models {
			able.CPUModels = append(able.CPUModels, model.Name)
		}
	}
	return able, nil
}

func offers(enums []libvirtxml.DomainCapsEnum, name, value string) bool {
	return slices.ContainsFunc(enums, func(e libvirtxml.DomainCapsEnum) bool {
		return e.Name == name && slices.Contains(e.Values, value)
	})
}
