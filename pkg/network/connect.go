package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/ambipod/ambipod/pkg/network/dhcp"
	"github.com/ambipod/ambipod/pkg/network/netns"
	"github.com/ambipod/ambipod/pkg/network/redirect"
	"github.com/ambipod/ambipod/pkg/network/tap"
)

// ourPrefix begins the names of our devices in a sandbox's namespace.
const ourPrefix = "ambipod-"

const sinkName = ourPrefix + "sink"

func tapName(i int) string { return ourPrefix + "tap" + strconv.Itoa(i) }

// isOurs tells our devices from the CNI plugins'.
func isOurs(name string) bool { return strings.HasPrefix(name, ourPrefix) }

// Connect joins each of the sandbox's interfaces with a tap and starts the DHCP
// server of those that have an IPv4 address. It can be repeated: after a restart
// of this process it brings DHCP back without touching a running guest's
// traffic. On failure the sandbox is disconnected.
func (m *Manager) Connect(ctx context.Context, sandboxID string, r *Result) error {
	if err := checkID(sandboxID); err != nil {
		return err
	}
	defer m.locks.lock(sandboxID)()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("connect sandbox %s: %w", sandboxID, err)
	}
	if err := m.Disconnect(sandboxID); err != nil {
		return err
	}
	if err := makeDevices(r); err != nil {
		return fmt.Errorf("connect sandbox %s: %w", sandboxID, err)
	}
	servers, err := m.startDHCP(sandboxID, r)
	if err != nil {
		return fmt.Errorf("connect sandbox %s: %w", sandboxID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers[sandboxID] = servers
	return nil
}

// Disconnect stops the sandbox's DHCP servers and waits for them. Its devices
// stay, and with them a running guest's traffic.
func (m *Manager) Disconnect(sandboxID string) error {
	m.mu.Lock()
	servers := m.servers[sandboxID]
	delete(m.servers, sandboxID)
	m.mu.Unlock()
	return closeServers(map[string][]*dhcp.Server{sandboxID: servers})
}

// closeServers closes all at once: the kernel lets each wait some ten milliseconds
// until no packet can be on its way to it any more, and those waits may overlap.
func closeServers(bySandbox map[string][]*dhcp.Server) error {
	var (
		closing sync.WaitGroup
		mu      sync.Mutex // guards errs
		errs    []error
	)
	for id, servers := range bySandbox {
		for _, s := range servers {
			closing.Go(func() {
				if err := s.Close(); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, fmt.Errorf("disconnect sandbox %s: %w", id, err))
				}
			})
		}
	}
	closing.Wait()
	return errors.Join(errs...)
}

// makeDevices makes what is missing of taps, sink and redirects.
func makeDevices(r *Result) error {
	h, err := netns.Netlink(r.NetNS)
	if err != nil {
		return err
	}
	defer h.Close()
	sink, err := ensureTap(h, r.NetNS, tapDevice{name: sinkName})
	if err != nil {
		return err
	}
	for i, iface := range r.Interfaces {
		if err := join(h, r, i, sink); err != nil {
			return fmt.Errorf("interface %s: %w", iface.Name, err)
		}
	}
	return nil
}

func join(h *netlink.Handle, r *Result, i int, sink netlink.Link) error {
	iface := r.Interfaces[i]
	mac, err := net.ParseMAC(iface.MAC)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	link, err := h.LinkByName(iface.Name)
	if err != nil {
		return fmt.Errorf("find it in %s: %w", r.NetNS, err)
	}
	tapLink, err := ensureTap(h, r.NetNS, tapDevice{tapName(i), iface.MTU, r.Queues > 1})
	if err != nil {
		return err
	}
	guest := redirect.Guest{MAC: mac, AllowSpoofing: r.AllowSpoofing}
	for _, p := range iface.Addresses {
		guest.Addresses = append(guest.Addresses, p.Addr())
	}
	return redirect.Apply(h, redirect.Pair{Interface: link, Tap: tapLink, Sink: sink}, guest)
}

// tapDevice is a tap as it is to be; many says that it has several queues.
type tapDevice struct {
	name string
	mtu  int
	many bool
}

// ensureTap returns a persistent tap, made if absent, muted and up. How many queues it
// has is only decided when it is made: a guest may be using it.
func ensureTap(h *netlink.Handle, path string, want tapDevice) (netlink.Link, error) {
	name, mtu := want.name, want.mtu
	link, err := h.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		if err := netns.Do(path, func() error { return tap.Create(name, want.many) }); err != nil {
			return nil, err
		}
		link, err = h.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find tap %s: %w", name, err)
	}
	if err := netns.Do(path, func() error { return mute(name) }); err != nil {
		return nil, fmt.Errorf("set up tap %s: %w", name, err)
	}
	if mtu != 0 && link.Attrs().MTU != mtu {
		err = h.LinkSetMTU(link, mtu)
	}
	err = errors.Join(err, h.LinkSetARPOff(link), h.LinkSetUp(link))
	if err != nil {
		return nil, fmt.Errorf("set up tap %s: %w", name, err)
	}
	return link, nil
}

// mute keeps the namespace's own stack from talking to the guest (IPv6 sends
// unasked on every interface) and from forwarding the little that it is let see.
func mute(name string) error {
	return errors.Join(
		setSysctl("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "1", os.ErrNotExist),
		setSysctl("/proc/sys/net/ipv4/conf/"+name+"/forwarding", "0", nil))
}

// setSysctl writes a value unless it is set already (/proc/sys may be read-only);
// an error of the class harmless is none.
func setSysctl(path, value string, harmless error) error {
	have, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0) // the file exists
	}
	if harmless != nil && errors.Is(err, harmless) {
		return nil
	}
	return err
}

func (m *Manager) startDHCP(sandboxID string, r *Result) ([]*dhcp.Server, error) {
	log := m.log.With("sandbox", sandboxID)
	var servers []*dhcp.Server
	err := netns.Do(r.NetNS, func() error {
		for i, iface := range r.Interfaces {
			config, ok, err := dhcpConfig(r, iface)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			s, err := dhcp.Start(tapName(i), config, log, &m.dhcp)
			if err != nil {
				return err
			}
			servers = append(servers, s)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, closeServers(map[string][]*dhcp.Server{sandboxID: servers}))
	}
	return servers, nil
}

// dhcpConfig says what the guest is told on one interface; ok is false when
// there is nothing to tell by DHCPv4.
func dhcpConfig(r *Result, iface Interface) (c dhcp.Config, ok bool, err error) {
	mac, err := net.ParseMAC(iface.MAC)
	if err != nil {
		return c, false, fmt.Errorf("interface %s: %w: %w", iface.Name, err, errdefs.ErrInvalidArgument)
	}
	i := slices.IndexFunc(iface.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() })
	if i < 0 {
		return c, false, nil
	}
	c = dhcp.Config{
		MAC:      mac,
		Address:  iface.Addresses[i],
		Search:   r.DNS.Searches,
		Hostname: r.Hostname,
		MTU:      iface.MTU,
	}
	for _, g := range iface.Gateways {
		if g.Is4() {
			c.Gateways = append(c.Gateways, g)
		}
	}
	for _, route := range r.Routes {
		if route.Interface == iface.Name && route.Destination.Addr().Is4() {
			c.Routes = append(c.Routes, dhcp.Route{Destination: route.Destination, Gateway: route.Gateway})
		}
	}
	for _, server := range r.DNS.Servers {
		if a, err := netip.ParseAddr(server); err == nil && a.Is4() {
			c.DNS = append(c.DNS, a)
		}
	}
	return c, true, nil
}

// OpenTaps returns descriptors of each interface's tap, in the Result's order, one
// for each queue, for QEMU: the caller closes them. A tap that Connect has found made
// with one queue has one. It fails while another process has one open.
func (m *Manager) OpenTaps(ctx context.Context, sandboxID string, r *Result) ([][]*os.File, error) {
	if err := checkID(sandboxID); err != nil {
		return nil, err
	}
	defer m.locks.lock(sandboxID)()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open taps of sandbox %s: %w", sandboxID, err)
	}
	h, err := netns.Netlink(r.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open taps of sandbox %s: %w", sandboxID, err)
	}
	defer h.Close()
	var taps [][]*os.File
	err = netns.Do(r.NetNS, func() error {
		for i := range r.Interfaces {
			files, err := openTap(h, tapName(i), max(1, r.Queues))
			if err != nil {
				return err
			}
			taps = append(taps, files)
		}
		return nil
	})
	if err != nil {
		for _, f := range slices.Concat(taps...) {
			err = errors.Join(err, f.Close())
		}
		return nil, fmt.Errorf("open taps of sandbox %s: %w", sandboxID, err)
	}
	return taps, nil
}

// openTap does not let the kernel make a device that Connect has not made: it
// would lead nowhere.
func openTap(h *netlink.Handle, name string, queues int) ([]*os.File, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s is not there, the sandbox must be connected first: %w: %w", name, err, errdefs.ErrFailedPrecondition)
	}
	device, ok := link.(*netlink.Tuntap)
	if !ok {
		return nil, fmt.Errorf("%s is a %s and no tap: %w", name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	many := device.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
	switch {
	case !many: // the kernel sees to it that nobody else has it
		queues = 1
	case device.Queues+device.DisabledQueues > 0:
		return nil, fmt.Errorf("tap %s is in use by another process, probably an earlier QEMU of this pod: %w", name, errdefs.ErrUnavailable)
	}
	return tap.Open(name, many, queues)
}
