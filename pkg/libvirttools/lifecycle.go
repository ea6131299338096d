package libvirttools

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// Define makes a domain known to libvirtd, or changes it if it exists. The XML
// must be BuildXML's and of this Client's owner. A foreign domain of equal UUID
// or name stays as it is; the error is errdefs.ErrAlreadyExists.
func (c *Client) Define(ctx context.Context, xml string) error {
	var described libvirtxml.Domain
	if err := described.Unmarshal(xml); err != nil {
		return fmt.Errorf("define domain: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if err := c.mayDefine(described); err != nil {
		return fmt.Errorf("define domain %s: %w", described.UUID, err)
	}
	_, err := act(ctx, c, func(conn *libvirt.Connect) (struct{}, error) {
		if err := c.nameIsFree(conn, described.Name, described.UUID); err != nil {
			return struct{}{}, err
		}
		dom, err := conn.DomainDefineXML(xml)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, dom.Free()
	})
	if err != nil {
		return fmt.Errorf("define domain %s: %w", described.UUID, err)
	}
	return nil
}

// mayDefine refuses XML without our mark: nobody would ever clean up after it.
func (c *Client) mayDefine(described libvirtxml.Domain) error {
	if described.Metadata == nil {
		return invalid("the XML has no mark, build it with BuildXML")
	}
	m, err := parseMark(described.Metadata.XML)
	if err != nil {
		return err
	}
	if m.Owner != c.owner {
		return invalid("the XML is of owner %q, this node is %q", m.Owner, c.owner)
	}
	return nil
}

// nameIsFree says whether defining a domain would take away a foreign one's place.
func (c *Client) nameIsFree(conn *libvirt.Connect, name, uuid string) error {
	_, err := withDomain(conn, uuid, func(dom *libvirt.Domain) (mark, error) { return c.markOf(dom) })
	switch {
	case errors.Is(err, errForeign):
		return fmt.Errorf("a domain that is not this node's has that UUID: %w", errdefs.ErrAlreadyExists)
	case err == nil || !hasCode(err, libvirt.ERR_NO_DOMAIN):
		return err
	}
	dom, err := conn.LookupDomainByName(name)
	if hasCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(dom.Free(), fmt.Errorf("another domain is called %s: %w", name, errdefs.ErrAlreadyExists))
}

// OpenDisk is what QEMU is given for a disk beside what the domain says: an open file
// instead of its path, or the key to a Ceph cluster.
type OpenDisk struct {
	Name string   // a Disk's Handed, or the Secret of its RBD
	File *os.File // stays the caller's, who may close it after Start
	Key  []byte   // instead of File
}

// hand gives libvirt what belongs to the disks. The caller takes the keys back when QEMU
// has them.
func hand(conn *libvirt.Connect, dom *libvirt.Domain, disks []OpenDisk) error {
	for _, disk := range disks {
		if disk.Key != nil {
			if err := lendKey(conn, disk.Name, disk.Key); err != nil {
				return err
			}
			continue
		}
		if err := dom.FDAssociate(disk.Name, []os.File{*disk.File}, 0); err != nil {
			return fmt.Errorf("hand over disk %s: %w", disk.Name, err)
		}
	}
	return nil
}

// Start boots a defined domain and returns when QEMU runs it. A domain that runs
// already is no error. It needs a Define before: errdefs.ErrNotFound.
func (c *Client) Start(ctx context.Context, uuid string, disks ...OpenDisk) error {
	err := c.changeOn(ctx, uuid, func(conn *libvirt.Connect, dom *libvirt.Domain) (err error) {
		state, err := stateOf(dom)
		if err != nil || state.Active() {
			return err
		}
		defer func() { err = errors.Join(err, takeBackKeys(conn, disks)) }()
		if err := hand(conn, dom, disks); err != nil {
			return err
		}
		err = dom.Create()
		if err == nil || !hasCode(err, libvirt.ERR_OPERATION_INVALID) {
			return err
		}
		// Somebody else may have been faster.
		if state, stateErr := stateOf(dom); stateErr == nil && state.Active() {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("start domain %s: %w", uuid, err)
	}
	return nil
}

// Shutdown presses a guest's power button and does not wait for what it does. A guest that
// is still booting does not notice, so ask again after a while. A domain that is absent,
// not running or about to end is no error.
func (c *Client) Shutdown(ctx context.Context, uuid string) error {
	err := c.change(ctx, uuid, func(dom *libvirt.Domain) error {
		state, err := stateOf(dom)
		if err != nil || !state.Active() || state.Phase == PhaseStopping {
			return err
		}
		return unlessInactive(dom, dom.ShutdownFlags(libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN))
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("shut down domain %s: %w", uuid, err)
	}
	return nil
}

// Destroy ends a domain's QEMU at once, as pulling the plug does, and returns when
// it is gone. A domain that is absent or not running is no error.
func (c *Client) Destroy(ctx context.Context, uuid string) error {
	err := c.change(ctx, uuid, func(dom *libvirt.Domain) error {
		state, err := stateOf(dom)
		if err != nil || !state.Active() {
			return err
		}
		return unlessInactive(dom, dom.DestroyFlags(libvirt.DOMAIN_DESTROY_DEFAULT))
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("destroy domain %s: %w", uuid, err)
	}
	return nil
}

// Undefine makes libvirtd forget a domain with all that it keeps about it: saved
// memory, snapshots' descriptions, firmware variables. An absent domain is no
// error. One that runs must be destroyed before: errdefs.ErrFailedPrecondition.
func (c *Client) Undefine(ctx context.Context, uuid string) error {
	err := c.changeOn(ctx, uuid, func(conn *libvirt.Connect, dom *libvirt.Domain) error {
		state, err := stateOf(dom)
		if err != nil {
			return err
		}
		if state.Active() {
			// libvirt would keep it as a transient domain, which nobody expects.
			return fmt.Errorf("it is %s, destroy it first: %w", state.Phase, errdefs.ErrFailedPrecondition)
		}
		if err := takeBackForgotten(conn, dom); err != nil {
			return err
		}
		return dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE |
			libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
			libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA |
			libvirt.DOMAIN_UNDEFINE_NVRAM)
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("undefine domain %s: %w", uuid, err)
	}
	return nil
}

// change runs fn with a domain of this node.
func (c *Client) change(ctx context.Context, uuid string, fn func(*libvirt.Domain) error) error {
	return c.changeOn(ctx, uuid, func(_ *libvirt.Connect, dom *libvirt.Domain) error { return fn(dom) })
}

// changeOn is change for what takes the connection, too.
func (c *Client) changeOn(ctx context.Context, uuid string, fn func(*libvirt.Connect, *libvirt.Domain) error) error {
	_, err := act(ctx, c, func(conn *libvirt.Connect) (struct{}, error) {
		return withDomain(conn, uuid, func(dom *libvirt.Domain) (struct{}, error) {
			if _, err := c.markOf(dom); err != nil {
				return struct{}{}, err
			}
			return struct{}{}, fn(conn, dom)
		})
	})
	return err
}

// unlessInactive forgives an error about a domain that has ended meanwhile.
func unlessInactive(dom *libvirt.Domain, err error) error {
	if !hasCode(err, libvirt.ERR_OPERATION_INVALID) {
		return err
	}
	state, stateErr := stateOf(dom)
	if hasCode(stateErr, libvirt.ERR_NO_DOMAIN) || stateErr == nil && (!state.Active() || state.Phase == PhaseStopping) {
		return nil
	}
	return err
}
