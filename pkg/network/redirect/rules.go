// Package redirect joins a pod's interface with its guest's tap by tc filters.
//
// Everything that arrives on the interface leaves by the tap and the other way
// round, so the namespace's own IP stack never sees the guest's traffic and
// answers nothing in its place. Three kinds of packet are treated otherwise:
// DHCP from the guest stays in the namespace, where its server listens; DHCP
// and, unless spoofing is allowed, IPv6 router advertisements cross in neither
// direction; and unless spoofing is allowed, the guest's packets must carry its
// own MAC and one of its own IP addresses.
//
// Nouns: a Rule is one filter on the ingress of one of the two devices; the
// sink is a third tap which nobody reads, where unwanted packets end. Only the
// classifier u32 and the action mirred are used, which every kernel with tc has.
// The namespace's lock is the caller's: Apply must not run twice at once for
// one pair.
package redirect

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Target is where a rule sends a packet.
type Target string

// The targets of a rule.
const (
	ToPeer  Target = "peer"  // out of the other device of the pair
	ToLocal Target = "local" // up the namespace's own stack
	ToSink  Target = "sink"  // nowhere
)

// Match compares four bytes of the packet; Offset counts from the network
// header, so that the Ethernet header begins at -14.
type Match struct {
	Offset      int32
	Mask, Value uint32 // most significant byte first
}

// Rule is one filter. Rules are tried by Priority, then by their order.
type Rule struct {
	Priority uint16
	Protocol uint16 // EtherType, or ETH_P_ALL
	Matches  []Match
	Target   Target
	Why      string // for people who read the rules
}

// String is the rule in the manner of tc(8).
func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "prio %d protocol %#04x", r.Priority, r.Protocol)
	for _, m := range r.Matches {
		fmt.Fprintf(&b, " match %08x/%08x at %d", m.Value, m.Mask, m.Offset)
	}
	fmt.Fprintf(&b, " to %s (%s)", r.Target, r.Why)
	return b.String()
}

// Guest is whom the tap belongs to.
type Guest struct {
	MAC           net.HardwareAddr
	Addresses     []netip.Addr
	AllowSpoofing bool
}

const (
	protoUDP    = 17
	protoICMPv6 = 58

	portDHCPServer   = 67
	portDHCPClient   = 68
	portDHCPv6Client = 546
	portDHCPv6Server = 547

	typeRouterAdvertisement = 134
)

// Priorities: one protocol each, for the kernel keeps them apart by both.
const (
	prioIPv4 = 1 + iota
	prioARP
	prioIPv6
	prioRest
)

// InterfaceRules are the rules for packets that arrive from the network.
func InterfaceRules(g Guest) []Rule {
	rules := []Rule{
		dhcp4(ToSink, "DHCP of others", toPort(ports4, portDHCPServer)),
		dhcp4(ToSink, "DHCP of others", toPort(ports4, portDHCPClient)),
	}
	rules = append(rules, udpWithOptions()...)
	if !g.AllowSpoofing {
		rules = append(rules,
			routerAdvertisement(),
			dhcp6(ToSink, "DHCPv6 of others", toPort(ports6, portDHCPv6Client)))
	}
	return append(rules, Rule{Priority: prioRest, Protocol: unix.ETH_P_ALL, Target: ToPeer, Why: "to the guest"})
}

// TapRules are the rules for packets that the guest sends.
func TapRules(g Guest) []Rule {
	own := fromMAC(g.MAC)
	rules := []Rule{
		dhcp4(ToLocal, "DHCP of the guest", slices.Concat(own, []Match{toPort(ports4, portDHCPServer)})...),
		dhcp4(ToSink, "DHCP with a foreign MAC", toPort(ports4, portDHCPServer)),
		dhcp4(ToSink, "guest as DHCP server", toPort(ports4, portDHCPClient)),
	}
	rules = append(rules, udpWithOptions()...)
	if g.AllowSpoofing {
		return append(rules, Rule{Priority: prioRest, Protocol: unix.ETH_P_ALL, Target: ToPeer, Why: "to the network"})
	}
	rules = append(rules,
		routerAdvertisement(),
		dhcp6(ToSink, "guest as DHCPv6 server", fromPort(ports6, portDHCPv6Server)))
	for _, a := range g.Addresses {
		rules = append(rules, ownAddress(g.MAC, a)...)
	}
	return append(rules,
		arpFrom(g.MAC, netip.IPv4Unspecified(), "ARP probe"),
		allow6("own MAC and link-local address", slices.Concat(own, []Match{{8, 0xffc00000, 0xfe800000}})...),
		allow6("duplicate address detection", slices.Concat(own, source6(netip.IPv6Unspecified()))...),
		Rule{Priority: prioRest, Protocol: unix.ETH_P_ALL, Target: ToSink, Why: "foreign MAC or address"},
	)
}

// ownAddress lets the guest use one of its addresses.
func ownAddress(mac net.HardwareAddr, a netip.Addr) []Rule {
	own := fromMAC(mac)
	if a.Is6() {
		return []Rule{allow6("own MAC and address", slices.Concat(own, source6(a))...)}
	}
	return []Rule{
		{
			Priority: prioIPv4, Protocol: unix.ETH_P_IP, Target: ToPeer, Why: "own MAC and address",
			Matches: slices.Concat([]Match{{12, 0xffffffff, ipv4(a)}}, own),
		},
		arpFrom(mac, a, "ARP for an own address"),
	}
}

func allow6(why string, m ...Match) Rule {
	return Rule{Priority: prioIPv6, Protocol: unix.ETH_P_IPV6, Target: ToPeer, Why: why, Matches: m}
}

// dhcp4 matches UDP over IPv4 without options, in an unfragmented packet or its
// first fragment: in later fragments there are no ports at this place.
func dhcp4(target Target, why string, m ...Match) Rule {
	first := []Match{{8, 0x00ff0000, protoUDP << 16}, {0, 0x0f000000, 0x05000000}, {4, 0x00001fff, 0}}
	return Rule{Priority: prioIPv4, Protocol: unix.ETH_P_IP, Target: target, Why: why, Matches: slices.Concat(first, m)}
}

// dhcp6 matches UDP right after the IPv6 header.
func dhcp6(target Target, why string, port Match) Rule {
	return Rule{
		Priority: prioIPv6, Protocol: unix.ETH_P_IPV6, Target: target, Why: why,
		Matches: []Match{{4, 0x0000ff00, protoUDP << 8}, port},
	}
}

// Places of the ports behind an IP header without options or extensions.
const (
	ports4 = 20
	ports6 = 40
)

func toPort(at int32, port uint32) Match   { return Match{at, 0x0000ffff, port} }
func fromPort(at int32, port uint32) Match { return Match{at, 0xffff0000, port << 16} }

// udpWithOptions drops UDP whose IPv4 header has options (is 6 to 15 words
// long): its ports are elsewhere, and nothing but evasion sends it.
func udpWithOptions() []Rule {
	var rules []Rule
	for _, length := range []Match{{0, 0x0e000000, 0x06000000}, {0, 0x08000000, 0x08000000}} {
		rules = append(rules, Rule{
			Priority: prioIPv4, Protocol: unix.ETH_P_IP, Target: ToSink, Why: "UDP behind IP options",
			Matches: []Match{{8, 0x00ff0000, protoUDP << 16}, length},
		})
	}
	return rules
}

func routerAdvertisement() Rule {
	return Rule{
		Priority: prioIPv6, Protocol: unix.ETH_P_IPV6, Target: ToSink, Why: "router advertisement",
		Matches: []Match{{4, 0x0000ff00, protoICMPv6 << 8}, {40, 0xff000000, typeRouterAdvertisement << 24}},
	}
}

// arpFrom matches ARP whose Ethernet and ARP senders are the guest.
func arpFrom(mac net.HardwareAddr, a netip.Addr, why string) Rule {
	return Rule{
		Priority: prioARP, Protocol: unix.ETH_P_ARP, Target: ToPeer, Why: why,
		Matches: slices.Concat(fromMAC(mac), []Match{
			{8, 0xffffffff, binary.BigEndian.Uint32(mac[:4])},
			{12, 0xffffffff, uint32(binary.BigEndian.Uint16(mac[4:6]))<<16 | ipv4(a)>>16},
			{16, 0xffff0000, ipv4(a) << 16},
		}),
	}
}

// fromMAC matches the Ethernet source address.
func fromMAC(mac net.HardwareAddr) []Match {
	return []Match{
		{-8, 0xffffffff, binary.BigEndian.Uint32(mac[:4])},
		{-4, 0xffff0000, uint32(binary.BigEndian.Uint16(mac[4:6])) << 16},
	}
}

// source6 matches the IPv6 source address.
func source6(a netip.Addr) []Match {
	raw := a.As16()
	var out []Match
	for i := range 4 {
		out = append(out, Match{8 + int32(4*i), 0xffffffff, binary.BigEndian.Uint32(raw[4*i:])})
	}
	return out
}

func ipv4(a netip.Addr) uint32 {
	raw := a.As4()
	return binary.BigEndian.Uint32(raw[:])
}
