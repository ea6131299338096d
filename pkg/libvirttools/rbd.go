package libvirttools

import (
	"errors"
	"fmt"
	"net"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// secretType is libvirt's word for keys of Ceph.
const secretType = "ceph"

// rbd says where a disk is and whose key QEMU shows there.
func rbd(d Disk) *libvirtxml.DomainDiskSourceNetwork {
	out := &libvirtxml.DomainDiskSourceNetwork{Protocol: "rbd", Name: d.Path}
	for _, monitor := range d.RBD.Monitors {
		host, port, _ := net.SplitHostPort(monitor) // validated
		out.Hosts = append(out.Hosts, libvirtxml.DomainDiskSourceHost{Name: host, Port: port})
	}
	if d.RBD.User != "" {
		out.Auth = &libvirtxml.DomainDiskAuth{
			Username: d.RBD.User, Secret: &libvirtxml.DomainDiskSecret{Type: secretType, Usage: d.RBD.Secret},
		}
	}
	return out
}

func validateRBD(d Disk) error {
	if d.Device || d.Handed != "" || d.Backing != nil || d.Size > 0 || d.Format != FormatRaw || !plain(d.Path) {
		return invalid("disk %q in a Ceph cluster must be a whole one of format %s", d.Path, FormatRaw)
	}
	for _, monitor := range d.RBD.Monitors {
		if _, _, err := net.SplitHostPort(monitor); err != nil || !plain(monitor) {
			return invalid("monitor %q of disk %s is not HOST:PORT", monitor, d.Path)
		}
	}
	if len(d.RBD.Monitors) == 0 || !plain(d.RBD.User) || (d.RBD.User == "") != (d.RBD.Secret == "") || !plain(d.RBD.Secret) {
		return invalid("disk %s in a Ceph cluster needs monitors, and a user and the name of a secret or neither", d.Path)
	}
	return nil
}

// lendKey gives libvirt a key until takeBackKey. It is kept in libvirtd's memory alone and
// no client can read it. What a process that was killed has lent is replaced.
func lendKey(conn *libvirt.Connect, name string, key []byte) (err error) {
	secret, err := conn.LookupSecretByUsage(libvirt.SECRET_USAGE_TYPE_CEPH, name)
	if hasCode(err, libvirt.ERR_NO_SECRET) {
		described := libvirtxml.Secret{Ephemeral: "yes", Private: "yes", Usage: &libvirtxml.SecretUsage{Type: secretType, Name: name}}
		var xml string
		if xml, err = described.Marshal(); err == nil {
			secret, err = conn.SecretDefineXML(xml, 0)
		}
	}
	if err != nil {
		return fmt.Errorf("lend key %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, secret.Free()) }()
	if err := secret.SetValue(key, 0); err != nil {
		return fmt.Errorf("lend key %s: %w", name, err)
	}
	return nil
}

// takeBackKey removes a key; one that is absent is no error.
func takeBackKey(conn *libvirt.Connect, name string) (err error) {
	secret, err := conn.LookupSecretByUsage(libvirt.SECRET_USAGE_TYPE_CEPH, name)
	if hasCode(err, libvirt.ERR_NO_SECRET) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take back key %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, secret.Free()) }()
	if err := secret.Undefine(); err != nil && !hasCode(err, libvirt.ERR_NO_SECRET) {
		return fmt.Errorf("take back key %s: %w", name, err)
	}
	return nil
}

// takeBackKeys removes the keys that came with disks.
func takeBackKeys(conn *libvirt.Connect, disks []OpenDisk) error {
	var failures error
	for _, disk := range disks {
		if disk.Key != nil {
			failures = errors.Join(failures, takeBackKey(conn, disk.Name))
		}
	}
	return failures
}

// takeBackForgotten removes what a process that was killed has lent to a domain.
func takeBackForgotten(conn *libvirt.Connect, dom *libvirt.Domain) error {
	text, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
	if err != nil {
		return err
	}
	var described libvirtxml.Domain
	if err := described.Unmarshal(text); err != nil {
		return fmt.Errorf("read domain: %w", err)
	}
	if described.Devices == nil {
		return nil
	}
	for _, disk := range described.Devices.Disks {
		if disk.Source == nil || disk.Source.Network == nil || disk.Source.Network.Auth == nil {
			continue
		}
		if err := takeBackKey(conn, disk.Source.Network.Auth.Secret.Usage); err != nil {
			return err
		}
	}
	return nil
}
