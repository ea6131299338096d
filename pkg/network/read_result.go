package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// readResult describes the namespace as CNI left it. Interfaces, addresses and
// routes are read from the kernel, because plugins' own results are often
// incomplete: old versions name no interfaces, some name no gateway or routes,
// and meta-plugins tell of the first network alone.
func readResult(path string, pod Pod, told *types100.Result) (*Result, error) {
	h, err := netns.Netlink(path)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := podLinks(h)
	if err != nil {
		return nil, fmt.Errorf("list interfaces of sandbox %s: %w", pod.SandboxID, err)
	}
	if len(links) == 0 || links[0].Attrs().Name != ifName {
		return nil, fmt.Errorf("the CNI plugins gave sandbox %s no interface %s that is up: %w",
			pod.SandboxID, ifName, errdefs.ErrFailedPrecondition)
	}
	r := &Result{NetNS: path, DNS: mergeDNS(pod.DNS, told), Hostname: pod.Hostname, AllowSpoofing: pod.AllowSpoofing}
	for _, link := range links {
		if err := r.readLink(h, link, told); err != nil {
			return nil, fmt.Errorf("read interface %s of sandbox %s: %w", link.Attrs().Name, pod.SandboxID, err)
		}
	}
	return r, nil
}

// podLinks returns the interfaces that become guest NICs: all Ethernet ones
// that are up and not ours, eth0 first, then by name.
func podLinks(h *netlink.Handle) ([]netlink.Link, error) {
	all, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	links := slices.DeleteFunc(all, func(l netlink.Link) bool {
		a := l.Attrs()
		return a.Flags&net.FlagUp == 0 || a.EncapType != "ether" || isOurs(a.Name)
	})
	slices.SortFunc(links, func(a, b netlink.Link) int {
		return cmp.Or(cmp.Compare(linkOrder(a), linkOrder(b)), cmp.Compare(a.Attrs().Name, b.Attrs().Name))
	})
	return links, nil
}

func linkOrder(l netlink.Link) int {
	if l.Attrs().Name == ifName {
		return 0
	}
	return 1
}

func (r *Result) readLink(h *netlink.Handle, link netlink.Link, told *types100.Result) error {
	attrs := link.Attrs()
	addresses, err := linkAddresses(h, link)
	if err != nil {
		return err
	}
	routes, connected, err := linkRoutes(h, link, addresses)
	if err != nil {
		return err
	}
	for i, a := range addresses {
		if !connected[a.Masked()] {
			addresses[i] = netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
		}
	}
	r.Interfaces = append(r.Interfaces, Interface{
		Name:      attrs.Name,
		MAC:       attrs.HardwareAddr.String(),
		MTU:       attrs.MTU,
		Addresses: addresses,
		Gateways:  gateways(routes, attrs.Name, told),
	})
	r.Routes = append(r.Routes, routes...)
	return nil
}

func linkAddresses(h *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	list, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if a.Scope != int(netlink.SCOPE_UNIVERSE) && a.Scope != int(netlink.SCOPE_SITE) {
			continue
		}
		if p, ok := toPrefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// linkRoutes returns the main table's routes over the link without those that
// the kernel derives from addresses; the networks of the latter are returned
// as connected.
func linkRoutes(h *netlink.Handle, link netlink.Link, addresses []netip.Prefix) (routes []Route, connected map[netip.Prefix]bool, err error) {
	connected = map[netip.Prefix]bool{}
	for _, a := range addresses {
		// The kernel has no separate route for the network of a host address.
		connected[a.Masked()] = a.IsSingleIP()
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, LinkIndex: link.Attrs().Index}
		list, err := h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		if err != nil {
			return nil, nil, fmt.Errorf("list routes: %w", err)
		}
		for _, entry := range list {
			route, ok := toRoute(entry, link.Attrs().Name, family)
			_, ofAddress := connected[route.Destination]
			switch {
			case !ok:
			case ofAddress && !route.Gateway.IsValid():
				connected[route.Destination] = true
			default:
				routes = append(routes, route)
			}
		}
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Compare(routeOrder(a), routeOrder(b))
	})
	return routes, connected, nil
}

// routeOrder puts gateways' own routes first and default routes last.
func routeOrder(r Route) int {
	switch {
	case r.IsDefault():
		return 2
	case r.Gateway.IsValid():
		return 1
	}
	return 0
}

func toRoute(r netlink.Route, link string, family int) (Route, bool) {
	if r.Type != unix.RTN_UNICAST {
		return Route{}, false
	}
	out := Route{Interface: link, Metric: r.Priority, Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	if family == netlink.FAMILY_V6 {
		out.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		p, ok := toPrefix(r.Dst)
		if !ok || p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() || p.Addr().IsMulticast() {
			return Route{}, false
		}
		out.Destination = p
	}
	if r.Gw != nil {
		gw, ok := netip.AddrFromSlice(r.Gw)
		if !ok {
			return Route{}, false
		}
		out.Gateway = gw.Unmap()
	}
	return out, true
}

// gateways lists the next hops over the link: of default routes, of others, and
// those that the plugins told for the interface's addresses.
func gateways(routes []Route, link string, told *types100.Result) []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, wantDefault := range []bool{true, false} {
		for _, r := range routes {
			if r.IsDefault() == wantDefault {
				add(r.Gateway)
			}
		}
	}
	for _, ip := range told.IPs {
		if i := ip.Interface; i == nil || *i < 0 || *i >= len(told.Interfaces) || told.Interfaces[*i].Name != link {
			continue
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			add(gw.Unmap())
		}
	}
	return out
}

// mergeDNS takes the pod's resolver configuration, which kubelet has made from
// the pod's dnsPolicy, and CNI's only where the pod's names no server.
func mergeDNS(pod DNS, told *types100.Result) DNS {
	if len(pod.Servers) > 0 {
		return pod
	}
	dns := DNS{Servers: told.DNS.Nameservers, Searches: told.DNS.Search, Options: told.DNS.Options}
	if len(dns.Searches) == 0 && told.DNS.Domain != "" {
		dns.Searches = []string{told.DNS.Domain}
	}
	return dns
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if bits == 128 && addr.Is4In6() {
		ones -= 96
	}
	return netip.PrefixFrom(addr.Unmap(), ones), true
}
