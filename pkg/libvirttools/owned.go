package libvirttools

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
)

// errForeign says that a domain is not this node's.
var errForeign = fmt.Errorf("the domain does not belong to this node and is left alone: %w", errdefs.ErrFailedPrecondition)

// OwnedDomain is a domain with this node's mark.
type OwnedDomain struct {
	UUID        string
	Name        string
	SandboxID   string
	ContainerID string
	State       State
}

// Owned lists the domains of this node, defined or running. Foreign ones are not
// in it. A domain whose mark cannot be read makes it fail with errdefs.ErrDataLoss,
// lest a caller takes an incomplete list for a complete one.
func (c *Client) Owned(ctx context.Context) ([]OwnedDomain, error) {
	list, err := look(ctx, c, func(conn *libvirt.Connect) ([]OwnedDomain, error) {
		doms, err := conn.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		defer freeAll(doms)
		var list []OwnedDomain
		for i := range doms {
			one, err := c.ownedDomain(&doms[i])
			switch {
			case err == nil:
				list = append(list, one)
			case errors.Is(err, errForeign), hasCode(err, libvirt.ERR_NO_DOMAIN): // or gone meanwhile
			default:
				return nil, err
			}
		}
		return list, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	return list, nil
}

func (c *Client) ownedDomain(dom *libvirt.Domain) (OwnedDomain, error) {
	m, err := c.markOf(dom)
	if err != nil {
		return OwnedDomain{}, err
	}
	uuid, err := dom.GetUUIDString()
	if err != nil {
		return OwnedDomain{}, err
	}
	name, err := dom.GetName()
	if err != nil {
		return OwnedDomain{}, err
	}
	state, err := stateOf(dom)
	if err != nil {
		return OwnedDomain{}, err
	}
	return OwnedDomain{UUID: uuid, Name: name, SandboxID: m.SandboxID, ContainerID: m.ContainerID, State: state}, nil
}

// markOf reads a domain's mark; errForeign if it has none or another node's.
func (c *Client) markOf(dom *libvirt.Domain) (mark, error) {
	text, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, markNamespace, libvirt.DOMAIN_AFFECT_CURRENT)
	if hasCode(err, libvirt.ERR_NO_DOMAIN_METADATA) {
		return mark{}, errForeign
	}
	if err != nil {
		return mark{}, err
	}
	m, err := parseMark(text)
	if err != nil {
		uuid, uuidErr := dom.GetUUIDString()
		return mark{}, errors.Join(fmt.Errorf("domain %s: %w", uuid, err), uuidErr)
	}
	if m.Owner != c.owner {
		return mark{}, errForeign
	}
	return m, nil
}

func freeAll(doms []libvirt.Domain) {
	for i := range doms {
		_ = doms[i].Free()
	}
}
