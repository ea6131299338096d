package node

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Sizes of a node's pod network and of its link to the machine.
const (
	podPrefix  = 24
	linkPrefix = 30
)

// Last octets of the pod network that are not a pod's.
const (
	gatewayOctet = 1  // the CNI bridge
	nodeOctet    = 2  // kubelet and the image servers, on the namespace's loopback
	firstPod     = 10 // from here on pods
	lastPod      = 254
)

// network is how a node's namespace is joined to the machine.
type network struct {
	Namespace string       `json:"namespace"` // its name in /run/netns
	Outer     string       `json:"outer"`     // the veth's end on the machine
	Pods      netip.Prefix `json:"pods"`
	Link      netip.Prefix `json:"link"` // /30 between machine and namespace
}

// namespacePath is what nsenter --net takes for the node with this ID.
func namespacePath(id string) string { return "/run/netns/ambipod-" + id }

// nodeIP is where the namespace's own servers answer, also from the machine.
func (n network) nodeIP() netip.Addr { return octet(n.Pods, nodeOctet) }

// bridge is the CNI bridge's name inside the namespace.
func (n network) bridge() string { return "ambipod0" }

func octet(p netip.Prefix, last byte) netip.Addr {
	b := p.Masked().Addr().As4()
	b[3] = last
	return netip.AddrFrom4(b)
}

// makeNetwork makes the namespace, its veth pair and the route to its pods.
func makeNetwork(id string, pods netip.Prefix) (network, error) {
	n := network{Namespace: "ambipod-" + id, Outer: "abp-" + id}
	taken, err := takenPrefixes()
	if err != nil {
		return n, err
	}
	seed, err := hex.DecodeString(id)
	if err != nil || len(seed) != 4 {
		return n, fmt.Errorf("node ID %q is not 8 hex digits: %w", id, errdefs.ErrInvalidArgument)
	}
	if !pods.IsValid() {
		pods = freePrefix(binary.BigEndian.Uint32(seed), podCandidate, taken)
	}
	if !pods.IsValid() || pods.Bits() != podPrefix || overlaps(pods, taken) {
		return n, fmt.Errorf("pod network %s is no free /24 on this machine; choose another: %w", pods, errdefs.ErrInvalidArgument)
	}
	n.Pods = pods.Masked()
	n.Link = freePrefix(binary.BigEndian.Uint32(seed), linkCandidate, taken)
	if !n.Link.IsValid() {
		return n, fmt.Errorf("no free /30 in 169.254.0.0/16 on this machine: %w", errdefs.ErrResourceExhausted)
	}
	return n, n.create()
}

// podCandidate is one of the /24 from 10.64.0.0 to 10.191.255.0.
func podCandidate(i uint32) netip.Prefix { return prefix(10<<24|64<<16|i%(128<<8)<<8, podPrefix) }

// linkCandidate is one of the /30 from 169.254.16.0 to 169.254.215.252.
func linkCandidate(i uint32) netip.Prefix {
	return prefix(169<<24|254<<16|16<<8+i%(200<<6)<<2, linkPrefix)
}

func prefix(address uint32, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, address))), bits)
}

// freePrefix tries candidates from seed on.
func freePrefix(seed uint32, candidate func(uint32) netip.Prefix, taken []netip.Prefix) netip.Prefix {
	const tries = 4096
	for i := range uint32(tries) {
		if p := candidate(seed + i); !overlaps(p, taken) {
			return p
		}
	}
	return netip.Prefix{}
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	return slices.ContainsFunc(taken, p.Overlaps)
}

// takenPrefixes lists where the machine sends packets other than by default.
func takenPrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the machine's routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			taken = append(taken, netip.PrefixFrom(addr, ones))
		}
	}
	return taken, nil
}

func (n network) create() error {
	inside, err := newNamespace(n.Namespace)
	if err != nil {
		return err
	}
	defer func() { _ = inside.Close() }()
	const inner = "uplink"
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: n.Outer},
		PeerName:      inner,
		PeerNamespace: netlink.NsFd(inside),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair %s: %w", n.Outer, err)
	}
	ns, err := netlink.NewHandleAt(inside)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Namespace, err)
	}
	defer ns.Close()
	machine, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer machine.Close()
	first := n.Link.Addr().Next()
	return errors.Join(
		setUp(ns, "lo", netip.PrefixFrom(n.nodeIP(), 32)),
		setUp(ns, inner, netip.PrefixFrom(first.Next(), n.Link.Bits())),
		setUp(machine, n.Outer, netip.PrefixFrom(first, n.Link.Bits())),
		n.route(machine, first.Next()),
	)
}

// newNamespace makes a named namespace without moving the caller into it.
func newNamespace(name string) (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return netns.None(), fmt.Errorf("find own network namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	inside, err := netns.NewNamed(name)
	if err != nil {
		return netns.None(), errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), netns.Set(home))
	}
	if err := netns.Set(home); err != nil {
		return inside, fmt.Errorf("return from network namespace %s: %w", name, err)
	}
	return inside, nil
}

func setUp(h *netlink.Handle, name string, address netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	ip := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("give %s to interface %s: %w", address, name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

func (n network) route(h *netlink.Handle, via netip.Addr) error {
	link, err := h.LinkByName(n.Outer)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", n.Outer, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: n.Pods.Addr().AsSlice(), Mask: net.CIDRMask(n.Pods.Bits(), 32)},
		Gw:        via.AsSlice(),
	}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("route pod network %s to %s: %w", n.Pods, n.Outer, err)
	}
	return nil
}

// removeNetwork removes what makeNetwork made for the node with this ID; it can
// be repeated. Routes go with their interface.
func removeNetwork(id string) error {
	var errs []error
	link, err := netlink.LinkByName("abp-" + id)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if missing := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &missing) {
		errs = append(errs, fmt.Errorf("remove interface abp-%s: %w", id, err))
	}
	if err := netns.DeleteNamed("ambipod-" + id); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove network namespace ambipod-%s: %w", id, err))
	}
	return errors.Join(errs...)
}
