//go:build integration

package network

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// TestPodNetwork is the main path with the plugins bridge and host-local: from
// Setup to a guest that talks to its node and is talked to, and back to nothing.
func TestPodNetwork(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	must(t, n.manager.Status(t.Context()))
	pod := testPod(t)
	r := n.mustSetup(pod)

	ip := netip.MustParseAddr("10.77.0.2")
	gw := netip.MustParseAddr("10.77.0.1")
	want := &Result{
		NetNS: filepath.Join(n.dir, "netns", pod.SandboxID),
		Interfaces: []Interface{{
			Name: "eth0", MAC: r.Interfaces[0].MAC, MTU: 1450,
			Addresses: []netip.Prefix{netip.PrefixFrom(ip, 24)}, Gateways: []netip.Addr{gw},
		}},
		Routes:   []Route{{Interface: "eth0", Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: gw}},
		DNS:      pod.DNS,
		Hostname: "vm-1",
	}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, r, compare, comparePrefix); diff != "" {
		t.Fatalf("result (-want +got):\n%s", diff)
	}
	stored, err := json.Marshal(r)
	must(t, err)
	var restored Result
	must(t, json.Unmarshal(stored, &restored))
	if diff := cmp.Diff(r, &restored, compare, comparePrefix); diff != "" {
		t.Fatalf("result after JSON (-want +got):\n%s", diff)
	}

	must(t, n.manager.Connect(t.Context(), pod.SandboxID, &restored))
	g := n.newGuest(pod, r, 0)
	lease, err := g.dhcp(t.Context(), everything)
	must(t, err)
	checkLease(t, lease.ACK, r)
	g.configure(r)
	echo(t, g.netns, web(ip))
	echo(t, n.netns, web(gw))
	mustDial(t, n.netns, web(ip))
	mustDial(t, g.netns, web(gw))

	must(t, n.onHost(func() error { return n.manager.Check(t.Context(), pod.SandboxID) }))
	counters, err := n.manager.Stats(pod.SandboxID)
	must(t, err)
	if len(counters) != 1 || counters[0].Name != "eth0" || counters[0].RxPackets == 0 || counters[0].TxBytes == 0 {
		t.Errorf("counters: %+v", counters)
	}

	for range 2 { // Teardown is idempotent
		must(t, n.teardown(n.manager, pod))
		n.assertClean()
	}
}

// everything asks for all options that the server knows.
var everything = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionHostName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionDNSDomainSearchList,
	dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionBroadcastAddress)

func checkLease(t *testing.T, ack *dhcpv4.DHCPv4, r *Result) {
	t.Helper()
	address := r.Interfaces[0].Addresses[0]
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	got := []any{ack.YourIPAddr.String(), ack.SubnetMask().String(), ack.Router()[0].String(), ack.DNS()[0].String(), ack.HostName(), int(mtu)}
	want := []any{address.Addr().String(), "ffffff00", r.Interfaces[0].Gateways[0].String(), "10.96.0.10", "vm-1", r.Interfaces[0].MTU}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lease (-want +got):\n%s\n%s", diff, ack.Summary())
	}
}

// TestReconnect restarts the daemon under a running guest: traffic goes on
// untouched, and DHCP comes back with Connect.
func TestReconnect(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.connected(pod)
	g := n.newGuest(pod, r, 0)
	g.configure(r)
	echo(t, g.netns, web(r.IPs()[0]))
	mustDial(t, n.netns, web(r.IPs()[0]))
	before := filterHandles(t, r)

	must(t, n.manager.Close())
	n.manager = n.newManager(Options{})
	mustDial(t, n.netns, web(r.IPs()[0]))
	for range 2 {
		must(t, n.manager.Connect(t.Context(), pod.SandboxID, r))
	}
	lease, err := g.dhcp(t.Context(), everything)
	must(t, err)
	checkLease(t, lease.ACK, r)
	mustDial(t, n.netns, web(r.IPs()[0]))
	if diff := cmp.Diff(before, filterHandles(t, r)); diff != "" {
		t.Errorf("filters were touched under a running guest:\n%s", diff)
	}
	if _, err := n.manager.OpenTaps(t.Context(), pod.SandboxID, r); err == nil {
		t.Error("a tap that the guest has open was opened a second time")
	}
}

// TestTeardownAfterReboot: the namespace is gone, records and leases are not.
func TestTeardownAfterReboot(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.mustSetup(pod)
	must(t, netns.Remove(r.NetNS))
	must(t, os.Remove(filepath.Join(n.conf, "10-test.conflist"))) // and so is the configuration
	n.manager = n.newManager(Options{})
	must(t, n.teardown(n.manager, pod))
	n.assertClean()
}
