package node

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Link joins two nodes by a veth pair of their own, so that the nodes and their
// pods reach each other whatever the machine forwards. It lasts as long as both.
func (n *Node) Link(other *Node) error {
	taken, err := takenPrefixes()
	if err != nil {
		return err
	}
	seed, err := hex.DecodeString(other.id)
	if err != nil {
		return fmt.Errorf("link node %q with %q: %w: %w", n.cfg.Name, other.cfg.Name, errdefs.ErrInvalidArgument, err)
	}
	// The nodes' own links are among the machine's, and so are not chosen here.
	link := freePrefix(binary.BigEndian.Uint32(seed)+1, linkCandidate, taken)
	if !link.IsValid() {
		return fmt.Errorf("no free /30 in 169.254.0.0/16 on this machine: %w", errdefs.ErrResourceExhausted)
	}
	here, err := netns.GetFromName(n.net.Namespace)
	if err != nil {
		return fmt.Errorf("find network namespace %s: %w", n.net.Namespace, err)
	}
	defer func() { _ = here.Close() }()
	there, err := netns.GetFromName(other.net.Namespace)
	if err != nil {
		return fmt.Errorf("find network namespace %s: %w", other.net.Namespace, err)
	}
	defer func() { _ = there.Close() }()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: "to-" + other.id, Namespace: netlink.NsFd(here)},
		PeerName:      "to-" + n.id,
		PeerNamespace: netlink.NsFd(there),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair between nodes %q and %q: %w", n.cfg.Name, other.cfg.Name, err)
	}
	first := link.Addr().Next()
	return errors.Join(n.reach(here, other, first, first.Next()), other.reach(there, n, first.Next(), first))
}

// reach makes the other node's addresses known in the namespace of this one.
func (n *Node) reach(ns netns.NsHandle, other *Node, own, via netip.Addr) error {
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.net.Namespace, err)
	}
	defer h.Close()
	name := "to-" + other.id
	if err := setUp(h, name, netip.PrefixFrom(own, linkPrefix)); err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	err = h.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: other.net.Pods.Addr().AsSlice(), Mask: net.CIDRMask(other.net.Pods.Bits(), 32)},
		Gw:        via.AsSlice(),
		// The node is known by this address, not by that of the link.
		Src: n.net.nodeIP().AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("route pod network %s to %s: %w", other.net.Pods, name, err)
	}
	return nil
}
