package dhcp

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A lease outlives any outage of this server that a node could have, while the
// daily renewal brings changed options to the guest.
const (
	leaseTime  = 365 * 24 * time.Hour
	renewTime  = 24 * time.Hour
	rebindTime = 300 * 24 * time.Hour
)

// linkLocalServer identifies the server where no gateway can stand in for it.
var linkLocalServer = netip.AddrFrom4([4]byte{169, 254, 254, 254})

// Config is what the guest is told. All addresses are IPv4.
type Config struct {
	MAC      net.HardwareAddr // of the guest
	Address  netip.Prefix     // of the guest; /32 when nothing else is on the link
	Routes   []Route          // beyond the one that Address implies
	Gateways []netip.Addr     // the first identifies the server, see ServerID
	DNS      []netip.Addr     // in order of preference
	Search   []string         // domains
	Hostname string           // may be empty
	MTU      int              // 0 is not told
}

// Route is a classless route; the gateway is not valid when the destination is
// on the link.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr
}

// ServerID is the address that the server goes by. A guest renews its lease by
// unicast to it, so it has to be one that the guest can resolve by ARP: the
// gateway. The request does not get there, for it never leaves the tap. Without
// a gateway the guest's unicast may fail, and it falls back to broadcast.
func (c Config) ServerID() netip.Addr {
	if len(c.Gateways) > 0 {
		return c.Gateways[0]
	}
	return linkLocalServer
}

// Validate returns ErrInvalidArgument if the configuration cannot be told.
func (c Config) Validate() error {
	if len(c.MAC) != 6 {
		return fmt.Errorf("DHCP: MAC address %q is not an Ethernet address: %w", c.MAC, errdefs.ErrInvalidArgument)
	}
	addrs := append([]netip.Addr{c.Address.Addr(), c.ServerID()}, c.DNS...)
	for _, r := range c.Routes {
		addrs = append(addrs, r.Destination.Addr())
		if r.Gateway.IsValid() {
			addrs = append(addrs, r.Gateway)
		}
	}
	for _, a := range addrs {
		if !a.Is4() {
			return fmt.Errorf("DHCP for %s: %q is not an IPv4 address: %w", c.MAC, a, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// options are all that could be told, without those of the lease itself.
func (c Config) options() []dhcpv4.Option {
	bits := c.Address.Bits()
	opts := []dhcpv4.Option{dhcpv4.OptSubnetMask(net.CIDRMask(bits, 32))}
	if bits < 31 {
		opts = append(opts, dhcpv4.OptBroadcastAddress(broadcast(c.Address)))
	}
	opts = append(opts, c.routeOptions()...)
	if len(c.DNS) > 0 {
		opts = append(opts, dhcpv4.OptDNS(ips(c.DNS)...))
	}
	if c.Hostname != "" {
		opts = append(opts, dhcpv4.OptHostName(c.Hostname))
	}
	if c.MTU > 0 && c.MTU <= math.MaxUint16 {
		opts = append(opts, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(c.MTU))))
	}
	if search := domains(c.Search); len(search) > 0 {
		opts = append(opts, dhcpv4.OptDomainName(search[0]), searchOption(search))
	}
	return opts
}

// routeOptions tells a lone default route by the option that every client
// knows; classless routes replace it when there is more to say (RFC 3442).
func (c Config) routeOptions() []dhcpv4.Option {
	var opts []dhcpv4.Option
	var classless dhcpv4.Routes
	simple := true
	for _, r := range c.Routes {
		gateway := netip.IPv4Unspecified() // means on the link
		if r.Gateway.IsValid() {
			gateway = r.Gateway
		}
		classless = append(classless, &dhcpv4.Route{
			Dest:   &net.IPNet{IP: r.Destination.Addr().AsSlice(), Mask: net.CIDRMask(r.Destination.Bits(), 32)},
			Router: gateway.AsSlice(),
		})
		if r.Destination.Bits() == 0 && r.Gateway.IsValid() && len(opts) == 0 {
			opts = append(opts, dhcpv4.OptRouter(r.Gateway.AsSlice()))
			simple = simple && c.Address.Contains(r.Gateway)
		} else {
			simple = false
		}
	}
	if !simple {
		opts = append(opts, dhcpv4.OptClasslessStaticRoute(classless...))
	}
	return opts
}

func broadcast(p netip.Prefix) net.IP {
	a, mask := p.Addr().As4(), net.CIDRMask(p.Bits(), 32)
	for i := range a {
		a[i] |= ^mask[i]
	}
	return a[:]
}

func ips(addrs []netip.Addr) []net.IP {
	out := make([]net.IP, len(addrs))
	for i, a := range addrs {
		out[i] = a.AsSlice()
	}
	return out
}

// domains leaves out what the wire format cannot carry.
func domains(search []string) []string {
	var out []string
	for _, d := range search {
		d = strings.TrimSuffix(d, ".")
		ok := d != "" && len(d) <= 253
		for label := range strings.SplitSeq(d, ".") {
			ok = ok && label != "" && len(label) <= 63
		}
		if ok {
			out = append(out, d)
		}
	}
	return out
}

// searchOption encodes a domain search list without compression (RFC 3397).
func searchOption(search []string) dhcpv4.Option {
	var b []byte
	for _, d := range search {
		for label := range strings.SplitSeq(d, ".") {
			b = append(b, byte(len(label))) //nolint:gosec // domains lets at most 63 through
			b = append(b, label...)
		}
		b = append(b, 0)
	}
	return dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, b)
}
