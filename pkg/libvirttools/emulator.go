package libvirttools

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"
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
