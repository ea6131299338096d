//go:build integration

package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// TestDualStack: the guest has an address of each family and uses both.
func TestDualStack(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24", "fd77::/64"))
	pod := testPod(t)
	r := n.connected(pod)
	if got := fmt.Sprint(r.Interfaces[0].Addresses, r.Interfaces[0].Gateways); got != "[10.77.0.2/24 fd77::2/64] [10.77.0.1 fd77::1]" {
		t.Fatalf("addresses and gateways: %s", got)
	}
	wantRoutes := []Route{
		{Interface: "eth0", Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.77.0.1")},
		{Interface: "eth0", Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd77::1"), Metric: 1024},
	}
	if !slices.Equal(r.Routes, wantRoutes) {
		t.Errorf("routes: %v", r.Routes)
	}
	g := n.newGuest(pod, r, 0)
	lease, err := g.dhcp(t.Context(), everything)
	must(t, err)
	checkLease(t, lease.ACK, r)
	g.configure(r)
	n.settle()
	for i, ip := range r.IPs() {
		echo(t, g.netns, web(ip))
		echo(t, n.netns, web(r.Interfaces[0].Gateways[i]))
		mustDial(t, n.netns, web(ip))
		mustDial(t, g.netns, web(r.Interfaces[0].Gateways[i]))
	}
}

// TestIPv6Only: there is nothing for DHCPv4 to tell.
func TestIPv6Only(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("fd77::/64"))
	pod := testPod(t)
	r := n.connected(pod)
	g := n.newGuest(pod, r, 0)
	g.configure(r)
	n.settle()
	ip := r.IPs()[0]
	echo(t, g.netns, web(ip))
	mustDial(t, n.netns, web(ip))
}

// TestRoutedPod: the plugin ptp wants all traffic to go through the gateway, even
// that to neighbours.
func TestRoutedPod(t *testing.T) {
	n := newNode(t)
	n.writeConf(map[string]any{"type": "ptp", "mtu": 1400, "ipam": map[string]any{
		"type": "host-local", "dataDir": n.leases, "ranges": []any{[]any{map[string]any{"subnet": "10.78.0.0/24"}}},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
	}})
	a, b := testPod(t), testPod(t)
	ra, rb := n.connected(a), n.connected(b)
	if got := fmt.Sprint(ra.Interfaces[0].Addresses); got != "[10.78.0.2/32]" {
		t.Errorf("addresses: %s", got)
	}
	ga, gb := n.newGuest(a, ra, 0), n.newGuest(b, rb, 0)
	lease, err := ga.dhcp(t.Context(), everything)
	must(t, err)
	want := dhcpv4.Routes{}
	for _, r := range ra.Routes {
		want = append(want, &dhcpv4.Route{Dest: ipNet(r.Destination), Router: r.Gateway.AsSlice()})
		if !r.Gateway.IsValid() {
			want[len(want)-1].Router = netip.IPv4Unspecified().AsSlice()
		}
	}
	if got := dhcpv4.Routes(lease.ACK.ClasslessStaticRoute()); len(got) < 2 || got.String() != want.String() {
		t.Errorf("routes by DHCP: %s, want %s", got, want)
	}
	ga.configure(ra)
	gb.configure(rb)
	echo(t, gb.netns, web(rb.IPs()[0]))
	mustDial(t, n.netns, web(rb.IPs()[0]))
	mustDial(t, ga.netns, web(rb.IPs()[0])) // its neighbour, through the node
}

// TestSeveralInterfaces: a meta-plugin attaches a second network and reports
// only the first, as Multus does.
func TestSeveralInterfaces(t *testing.T) {
	n := newNode(t)
	bin := n.fakePlugin("multi", `
conf=$(cat)
second=$(printf %s "$conf" | sed -e 's/10\.77\.0\./10.79.0./g' -e 's/cni0/cni1/' -e 's/testnet/secondnet/' -e 's/"type":"multi"/"type":"bridge"/')
printf %s "$second" | CNI_IFNAME=net1 `+pluginDir()+`/bridge >/dev/null || exit 1
printf %s "$conf" | exec `+pluginDir()+`/bridge`)
	n.manager = n.newManager(Options{BinDirs: []string{bin, pluginDir()}})
	conf := n.bridge("10.77.0.0/24")
	conf["type"] = "multi"
	n.writeConf(conf)
	pod := testPod(t)
	r := n.connected(pod)
	if len(r.Interfaces) != 2 || r.Interfaces[0].Name != "eth0" || r.Interfaces[1].Name != "net1" {
		t.Fatalf("interfaces: %+v", r.Interfaces)
	}
	for i, iface := range r.Interfaces {
		g := n.newGuest(pod, r, i)
		lease, err := g.dhcp(t.Context(), everything)
		must(t, err)
		if want := iface.Addresses[0].Addr().String(); lease.ACK.YourIPAddr.String() != want {
			t.Errorf("%s: leased %s, want %s", iface.Name, lease.ACK.YourIPAddr, want)
		}
		g.configure(r)
		echo(t, g.netns, web(iface.Addresses[0].Addr()))
		mustDial(t, n.netns, web(iface.Addresses[0].Addr()))
		must(t, g.unplug())
	}
	counters, err := n.manager.Stats(pod.SandboxID)
	must(t, err)
	if len(counters) != 2 || counters[0].Name != "eth0" || counters[1].Name != "net1" {
		t.Errorf("counters: %+v", counters)
	}
}

// TestPortMapping: a connection to the node's port reaches the guest.
func TestPortMapping(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Fatalf("install the Debian package iptables: %v", err)
	}
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"), map[string]any{
		"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true},
	})
	pod := testPod(t)
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 81, Protocol: "TCP"}}
	r := n.connected(pod)
	g := n.newGuest(pod, r, 0)
	g.configure(r)
	echo(t, g.netns, web(r.IPs()[0]))
	node := netip.AddrPortFrom(r.Interfaces[0].Gateways[0], 8080).String()
	got, err := dial(t, n.netns, node, testTimeout)
	if want := "hello from " + web(r.IPs()[0]); err != nil || got != want {
		t.Errorf("dial %s: %q, %v; want %q", node, got, err, want)
	}
	// The pod reaches itself by the node's port too: the bridge sends frames back
	// to where they came from (hairpin).
	got, err = dial(t, g.netns, node, testTimeout)
	if want := "hello from " + web(r.IPs()[0]); err != nil || got != want {
		t.Errorf("dial %s from the guest: %q, %v; want %q", node, got, err, want)
	}
}

// TestBandwidth: the limits of the pod become queueing disciplines on the node.
func TestBandwidth(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"), map[string]any{
		"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true},
	})
	pod := testPod(t)
	pod.IngressBandwidth, pod.EgressBandwidth = 8_000_000, 16_000_000
	n.connected(pod)
	h, err := netns.Netlink(n.netns)
	must(t, err)
	defer h.Close()
	links, err := h.LinkList()
	must(t, err)
	rates := map[uint64]bool{}
	for _, l := range links {
		qdiscs, err := h.QdiscList(l)
		must(t, err)
		for _, q := range qdiscs {
			if tbf, ok := q.(*netlink.Tbf); ok {
				rates[tbf.Rate*8] = true
			}
		}
	}
	if diff := cmp.Diff(map[uint64]bool{8_000_000: true, 16_000_000: true}, rates); diff != "" {
		t.Errorf("rates in bit/s (-want +got):\n%s", diff)
	}
}

// TestRestartOfGuest: a second guest gets the first one's taps and address.
func TestRestartOfGuest(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.connected(pod)
	for range 2 {
		g := n.newGuest(pod, r, 0)
		lease, err := g.dhcp(t.Context(), everything)
		must(t, err)
		checkLease(t, lease.ACK, r)
		g.configure(r)
		echo(t, g.netns, web(r.IPs()[0]))
		mustDial(t, n.netns, web(r.IPs()[0]))
		must(t, g.unplug())
	}
}

// TestMacvlan: the interface need not be a veth.
func TestMacvlan(t *testing.T) {
	if _, err := os.Stat(filepath.Join(pluginDir(), "macvlan")); err != nil {
		t.Fatalf("install the Debian package containernetworking-plugins: %v", err)
	}
	n := newNode(t)
	lan := filepath.Join(n.dir, "lan")
	must(t, netns.Create(lan))
	t.Cleanup(func() { must(t, netns.Remove(lan)) })
	f, err := os.Open(lan)
	must(t, err)
	must(t, n.onHost(func() error {
		uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "lan0", PeerNamespace: netlink.NsFd(f.Fd())}
		return errors.Join(netlink.LinkAdd(uplink), netlink.LinkSetUp(uplink))
	}))
	must(t, f.Close())
	must(t, netns.Do(lan, func() error {
		link, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.80.0.1/24"))}
		return errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
	}))
	n.writeConf(map[string]any{"type": "macvlan", "master": "uplink", "mode": "bridge", "ipam": map[string]any{
		"type": "host-local", "dataDir": n.leases, "ranges": []any{[]any{map[string]any{"subnet": "10.80.0.0/24", "rangeStart": "10.80.0.10"}}},
	}})
	pod := testPod(t)
	r := n.connected(pod)
	if len(r.Routes) != 0 {
		t.Errorf("routes of an isolated network: %v", r.Routes)
	}
	g := n.newGuest(pod, r, 0)
	lease, err := g.dhcp(t.Context(), everything)
	must(t, err)
	if lease.ACK.Router() != nil || lease.ACK.YourIPAddr.String() != r.IPs()[0].String() {
		t.Errorf("lease:\n%s", lease.ACK.Summary())
	}
	g.configure(r)
	echo(t, g.netns, web(r.IPs()[0]))
	mustDial(t, lan, web(r.IPs()[0]))
}
