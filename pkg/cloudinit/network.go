package cloudinit

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
)

// NetworkConfig sets up the guest's network cards statically, as a network-config
// document of version 2. Cards are found by MAC address and renamed: renderers
// other than netplan take the name for the card's identity.
type NetworkConfig struct {
	Interfaces []Interface
}

// Interface is one card.
type Interface struct {
	MAC          net.HardwareAddr
	Name         string // what the guest calls it from then on, such as eth0
	MTU          int    // bytes; 0 leaves it alone
	DHCP4, DHCP6 bool
	Addresses    []netip.Prefix // host addresses with the subnet's length
	Routes       []Route
	DNS          DNS
}

// Route is a way to other networks.
type Route struct {
	To     netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	Via    netip.Addr   // the zero value means that To is on the link
	Metric int          // 0 leaves it to the guest
}

// DNS are the resolvers to ask, and how. Options are those of resolv.conf(5), such
// as ndots:5. No network configuration has room for them: they are told to those
// distributions whose cloud-init writes resolv.conf itself.
type DNS struct {
	Servers []netip.Addr
	Search  []string
	Options []string
}

// interfaceNamePattern is what Linux allows, less what is hard to type.
var interfaceNamePattern = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)

// Bounds of an MTU: the least that IPv4 needs, and the most that a packet has.
const (
	minMTU     = 68
	minMTUIPv6 = 1280
	maxMTU     = 65535
)

func (n *NetworkConfig) validate() error {
	if n == nil {
		return nil
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	for _, i := range n.Interfaces {
		if err := i.validate(); err != nil {
			return err
		}
		if names[i.Name] || addresses[i.MAC.String()] {
			return invalid("interface %s (%s) appears twice", i.Name, i.MAC)
		}
		names[i.Name], addresses[i.MAC.String()] = true, true
	}
	return nil
}

func (i Interface) validate() error {
	if !interfaceNamePattern.MatchString(i.Name) {
		return invalid("interface name %q is not usable in Linux", i.Name)
	}
	if len(i.MAC) != 6 {
		return invalid("interface %s: MAC address %q does not have six bytes", i.Name, i.MAC)
	}
	for _, a := range i.Addresses {
		if !a.IsValid() {
			return invalid("interface %s has an address without a prefix length", i.Name)
		}
	}
	least := minMTU
	if i.hasIPv6() {
		least = minMTUIPv6
	}
	if i.MTU != 0 && (i.MTU < least || i.MTU > maxMTU) {
		return invalid("interface %s: MTU %d is not between %d and %d", i.Name, i.MTU, least, maxMTU)
	}
	for _, r := range i.Routes {
		if !r.To.IsValid() || (r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4()) {
			return invalid("interface %s: route to %s via %s mixes or lacks addresses", i.Name, r.To, r.Via)
		}
	}
	for _, server := range i.DNS.Servers {
		if !server.IsValid() {
			return invalid("interface %s has an empty DNS server address", i.Name)
		}
	}
	return nil
}

func (i Interface) hasIPv6() bool {
	return slices.ContainsFunc(i.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() })
}

// reaches tells whether an address is a neighbour by the interface's own subnets;
// link-local IPv6 addresses always are.
func (i Interface) reaches(a netip.Addr) bool {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	for _, own := range i.Addresses {
		if own.Masked().Contains(a) {
			return true
		}
	}
	return false
}

// The netplan-style document, as cloud-init's "Networking config version 2" has it.
type networkDocument struct {
	Version   int                         `yaml:"version"`
	Ethernets map[string]ethernetDocument `yaml:"ethernets"`
}

type ethernetDocument struct {
	Match struct {
		MACAddress string `yaml:"macaddress"`
	} `yaml:"match"`
	SetName     string               `yaml:"set-name"`
	DHCP4       bool                 `yaml:"dhcp4"`
	DHCP6       bool                 `yaml:"dhcp6"`
	AcceptRA    *bool                `yaml:"accept-ra,omitempty"`
	MTU         int                  `yaml:"mtu,omitempty"`
	Addresses   []string             `yaml:"addresses,omitempty"`
	Gateway6    string               `yaml:"gateway6,omitempty"`
	Routes      []routeDocument      `yaml:"routes,omitempty"`
	Nameservers *nameserversDocument `yaml:"nameservers,omitempty"`
}

type routeDocument struct {
	To     string `yaml:"to"`
	Via    string `yaml:"via,omitempty"`
	OnLink bool   `yaml:"on-link,omitempty"`
	Scope  string `yaml:"scope,omitempty"`
	Metric int    `yaml:"metric,omitempty"`
}

type nameserversDocument struct {
	Search    []string `yaml:"search,omitempty"`
	Addresses []string `yaml:"addresses,omitempty"`
}

// v2 renders network-config version 2.
func (n *NetworkConfig) v2() ([]byte, error) {
	doc := networkDocument{Version: 2, Ethernets: map[string]ethernetDocument{}}
	for _, i := range n.Interfaces {
		doc.Ethernets[i.Name] = i.v2()
	}
	return marshalYAML(doc)
}

func (i Interface) v2() ethernetDocument {
	e := ethernetDocument{SetName: i.Name, DHCP4: i.DHCP4, DHCP6: i.DHCP6, MTU: i.MTU}
	e.Match.MACAddress = i.MAC.String()
	for _, a := range i.Addresses {
		e.Addresses = append(e.Addresses, a.String())
	}
	if i.hasIPv6() && !i.DHCP6 {
		e.AcceptRA = new(bool) // the pod has the addresses it has, and no others
	}
	e.Gateway6, e.Routes = i.gatewayAndRoutes()
	if len(i.DNS.Servers)+len(i.DNS.Search) > 0 {
		e.Nameservers = &nameserversDocument{Search: i.DNS.Search}
		for _, server := range i.DNS.Servers {
			e.Nameservers.Addresses = append(e.Nameservers.Addresses, server.String())
		}
	}
	return e
}

// gatewayAndRoutes takes the first IPv6 default route for the key gateway6:
// cloud-init 22.4 makes ::/64 of a route to ::/0 unless netplan renders it.
func (i Interface) gatewayAndRoutes() (gateway6 string, routes []routeDocument) {
	for _, r := range i.Routes {
		switch {
		case i.leadsToGateway(r):
		case gateway6 == "" && r.Via.Is6() && r.To.Bits() == 0 && i.reaches(r.Via):
			gateway6 = r.Via.String()
		default:
			routes = append(routes, i.route(r))
		}
	}
	return gateway6, routes
}

// leadsToGateway tells whether a route only makes the gateway of another one
// reachable. The key on-link does that too, whereas the renderer for Debian's
// ifupdown fails altogether if any route lacks a gateway.
func (i Interface) leadsToGateway(r Route) bool {
	return !r.Via.IsValid() && r.To.IsSingleIP() &&
		slices.ContainsFunc(i.Routes, func(other Route) bool { return other.Via == r.To.Addr() })
}

// route renders destinations as prefixes always: older versions do not know the
// word "default".
func (i Interface) route(r Route) routeDocument {
	doc := routeDocument{To: r.To.Masked().String(), Metric: r.Metric}
	if !r.Via.IsValid() {
		doc.Scope = "link"
		return doc
	}
	doc.Via = r.Via.String()
	doc.OnLink = !i.reaches(r.Via)
	return doc
}
