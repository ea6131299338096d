package libvirttools

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// hidden stands for what a description must not show.
const hidden = "[redacted]"

// Describe returns a domain's XML as libvirtd has it at the moment, for people. What
// is secret is not in it: libvirt leaves passwords out, and the values of the
// emulator's environment, of which vmwrapper's key is one, are replaced.
func (c *Client) Describe(ctx context.Context, uuid string) (string, error) {
	text, err := look(ctx, c, func(conn *libvirt.Connect) (string, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (string, error) {
			if _, err := c.markOf(dom); err != nil {
				return "", err
			}
			described, err := describe(dom)
			if err != nil {
				return "", err
			}
			hideEnvironment(described)
			return described.Marshal()
		})
	})
	if err != nil {
		return "", fmt.Errorf("describe domain %s: %w", uuid, err)
	}
	return text, nil
}

func describe(dom *libvirt.Domain) (*libvirtxml.Domain, error) {
	text, err := dom.GetXMLDesc(0)
	if err != nil {
		return nil, err
	}
	described := &libvirtxml.Domain{}
	if err := described.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read libvirt's description: %w: %w", errdefs.ErrDataLoss, err)
	}
	return described, nil
}

func hideEnvironment(described *libvirtxml.Domain) {
	if described.QEMUCommandline == nil {
		return
	}
	for i := range described.QEMUCommandline.Envs {
		described.QEMUCommandline.Envs[i].Value = hidden
	}
}
