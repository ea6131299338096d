package libvirttools

import (
	"context"
	"fmt"
	"os"

	"libvirt.org/go/libvirt"
)

// OpenScreen connects to the screen of a running domain that was built with one.
// The file is a stream socket that speaks VNC's protocol; its other end is QEMU, and
// thus not to be trusted. The caller closes it.
func (c *Client) OpenScreen(ctx context.Context, uuid string) (*os.File, error) {
	file, err := act(ctx, c, func(conn *libvirt.Connect) (*os.File, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (*os.File, error) {
			if _, err := c.markOf(dom); err != nil {
				return nil, err
			}
			// Whoever may call this may see the screen: QEMU need not ask again.
			return dom.OpenGraphicsFD(0, libvirt.DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("open screen of domain %s: %w", uuid, err)
	}
	return file, nil
}
