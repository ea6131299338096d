//go:build integration

package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// capture records the frames that arrive at an interface.
type capture struct {
	conn *packet.Conn
	seen chan []byte
	done chan struct{}
}

func listenOn(t *testing.T, path, iface string) *capture {
	t.Helper()
	c := &capture{seen: make(chan []byte, 4096), done: make(chan struct{})}
	must(t, netns.Do(path, func() error {
		ifi, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		c.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	}))
	go func() {
		defer close(c.done)
		buf := make([]byte, 70000)
		for {
			n, _, err := c.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case c.seen <- bytes.Clone(buf[:n]):
			default:
			}
		}
	}()
	t.Cleanup(func() {
		c.conn.Close()
		<-c.done
	})
	return c
}

func (c *capture) send(t *testing.T, frame []byte) {
	t.Helper()
	_, err := c.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
	must(t, err)
}

// until returns the frames seen up to and without the one that is marked.
func (c *capture) until(t *testing.T, mark []byte) [][]byte {
	t.Helper()
	timeout := time.After(testTimeout)
	var out [][]byte
	for {
		select {
		case f := <-c.seen:
			if bytes.Contains(f, mark) {
				return out
			}
			out = append(out, f)
		case <-timeout:
			t.Fatalf("frame %q did not arrive; %d others did", mark, len(out))
		}
	}
}

func broadcastFrame(src net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(bytes.Repeat([]byte{0xff}, 6), src...)
	f = binary.BigEndian.AppendUint16(f, ethertype)
	return append(f, payload...)
}

// udp4 is a UDP packet without checksum.
func udp4(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload)))
	b = append(b, 0, 0, 0, 0, 64, 17, 0, 0)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	return append(b, payload...)
}

var everyone = netip.MustParseAddr("255.255.255.255")

// TestDHCPStaysInThePod: with two pods on one bridge, neither hears the other's
// requests or answers, and nothing of it reaches the node.
func TestDHCPStaysInThePod(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	podA, podB := testPod(t), testPod(t)
	ra, rb := n.connected(podA), n.connected(podB)
	a, b := n.newGuest(podA, ra, 0), n.newGuest(podB, rb, 0)

	t.Run("each guest gets its own address", func(t *testing.T) {
		for _, x := range []struct {
			g *guest
			r *Result
		}{{a, ra}, {b, rb}} {
			lease, err := x.g.dhcp(t.Context(), everything)
			must(t, err)
			checkLease(t, lease.ACK, x.r)
		}
	})
	t.Run("no other pod's server answers", func(t *testing.T) {
		bridge, inB := listenOn(t, n.netns, "cni0"), listenOn(t, b.netns, b.link)
		must(t, n.manager.Disconnect(podA.SandboxID))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if lease, err := a.dhcp(ctx); err == nil {
			t.Errorf("with its own server stopped, the guest got a lease:\n%s", lease.ACK.Summary())
		}
		// A marked frame from A, allowed by the rules, ends the observation.
		mark := []byte("end-of-observation")
		inA := listenOn(t, a.netns, a.link)
		inA.send(t, broadcastFrame(mac(t, ra), unix.ETH_P_IP, udp4(ra.IPs()[0], everyone, 9, 9, mark)))
		for where, c := range map[string]*capture{"bridge": bridge, "guest B": inB} {
			for _, f := range c.until(t, mark) {
				if isDHCP(f) {
					t.Errorf("DHCP of guest A seen by %s: % x", where, f[:42])
				}
			}
		}
	})
	t.Run("a rogue server is not heard", func(t *testing.T) {
		mark := []byte("rogue-ends-here")
		bridge, inA, inB := listenOn(t, n.netns, "cni0"), listenOn(t, a.netns, a.link), listenOn(t, b.netns, b.link)
		offer, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), dhcpv4.WithHwAddr(mac(t, ra)))
		must(t, err)
		// From guest B, and as if from a container or host on the bridge.
		inB.send(t, broadcastFrame(mac(t, rb), unix.ETH_P_IP, udp4(rb.IPs()[0], everyone, 67, 68, offer.ToBytes())))
		bridge.send(t, broadcastFrame(linkMAC(t, n.netns, "cni0"), unix.ETH_P_IP, udp4(rb.Interfaces[0].Gateways[0], everyone, 67, 68, offer.ToBytes())))
		inB.send(t, broadcastFrame(mac(t, rb), unix.ETH_P_IP, udp4(rb.IPs()[0], everyone, 9, 9, mark)))
		for _, f := range inA.until(t, mark) {
			if isDHCP(f) {
				t.Errorf("guest A hears % x", f[:42])
			}
		}
	})
}

func mac(t *testing.T, r *Result) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(r.Interfaces[0].MAC)
	must(t, err)
	return m
}

func linkMAC(t *testing.T, path, name string) net.HardwareAddr {
	t.Helper()
	var m net.HardwareAddr
	must(t, netns.Do(path, func() error {
		i, err := net.InterfaceByName(name)
		if err == nil {
			m = i.HardwareAddr
		}
		return err
	}))
	return m
}

func isDHCP(f []byte) bool {
	if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IP || f[23] != 17 {
		return false
	}
	dport := binary.BigEndian.Uint16(f[36:])
	return dport == 67 || dport == 68
}

// TestRenewal renews a lease by unicast, as a guest does each day, and by
// broadcast, as it does when that fails.
func TestRenewal(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.connected(pod)
	g := n.newGuest(pod, r, 0)
	lease, err := g.dhcp(t.Context())
	must(t, err)
	g.configure(r)
	bridge := listenOn(t, n.netns, "cni0")

	request, err := dhcpv4.NewRenewFromAck(lease.ACK)
	must(t, err)
	for name, dst := range map[string]netip.Addr{"unicast": r.Interfaces[0].Gateways[0], "broadcast": everyone} {
		t.Run(name, func(t *testing.T) {
			var conn net.PacketConn
			must(t, netns.Do(g.netns, func() error {
				lc := net.ListenConfig{}
				var err error
				conn, err = lc.ListenPacket(t.Context(), "udp4", r.IPs()[0].String()+":68")
				return err
			}))
			defer conn.Close()
			must(t, conn.SetDeadline(time.Now().Add(testTimeout)))
			_, err := conn.WriteTo(request.ToBytes(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 67)))
			must(t, err)
			buf := make([]byte, 2000)
			size, _, err := conn.ReadFrom(buf)
			must(t, err)
			reply, err := dhcpv4.FromBytes(buf[:size])
			must(t, err)
			if reply.MessageType() != dhcpv4.MessageTypeAck || !reply.YourIPAddr.Equal(r.IPs()[0].AsSlice()) {
				t.Errorf("reply:\n%s", reply.Summary())
			}
		})
	}
	mark := []byte("renewals-end")
	inside := listenOn(t, g.netns, g.link)
	inside.send(t, broadcastFrame(mac(t, r), unix.ETH_P_IP, udp4(r.IPs()[0], everyone, 9, 9, mark)))
	for _, f := range bridge.until(t, mark) {
		if isDHCP(f) {
			t.Errorf("a renewal left the pod: % x", f[:42])
		}
	}
}

// TestNamespaceIsMute: while no guest runs, nobody answers for it, neither ARP
// nor TCP, so that a peer sees a dead machine and not a wrong one.
func TestNamespaceIsMute(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.connected(pod)
	echo(t, r.NetNS, web(r.IPs()[0])) // would answer if the namespace's stack were reached
	if got, err := dial(t, n.netns, web(r.IPs()[0]), 2*time.Second); err == nil {
		t.Errorf("without a guest, something answered: %q", got)
	}
	g := n.newGuest(pod, r, 0)
	g.configure(r)
	// The guest listens nowhere: it is its stack that must refuse. Until then the
	// node may still be told what its earlier questions for the address came to.
	_, err := dial(t, n.netns, web(r.IPs()[0]), testTimeout)
	for end := time.Now().Add(testTimeout); errors.Is(err, unix.EHOSTUNREACH) && time.Now().Before(end); {
		_, err = dial(t, n.netns, web(r.IPs()[0]), testTimeout)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: got %v, want a refusal by the guest", err)
	}
	inGuest := listenOn(t, g.netns, g.link)
	host := listenOn(t, n.netns, "cni0")
	send := func(what []byte) {
		host.send(t, broadcastFrame(linkMAC(t, n.netns, "cni0"), unix.ETH_P_IP, udp4(r.Interfaces[0].Gateways[0], everyone, 9, 9, what)))
	}
	once, mark := []byte("delivered-once"), []byte("mute-ends")
	send(once)
	heard := inGuest.until(t, once)
	send(mark)
	heard = append(heard, inGuest.until(t, mark)...)
	devices := []net.HardwareAddr{linkMAC(t, r.NetNS, tapName(0)), linkMAC(t, r.NetNS, sinkName)}
	for _, f := range heard {
		if bytes.Contains(f, once) {
			t.Error("a frame was delivered twice")
		}
		for _, d := range devices {
			if bytes.Equal(f[6:12], d) {
				t.Errorf("the guest hears one of the namespace's own devices: % x", f)
			}
		}
	}
}

// TestSpoofing sends frames that are not the guest's to send.
func TestSpoofing(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		name := map[bool]string{false: "guarded", true: "allowed"}[allowed]
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.writeConf(n.bridge("10.77.0.0/24", "fd77::/64"))
			pod := testPod(t)
			pod.AllowSpoofing = allowed
			r := n.connected(pod)
			g := n.newGuest(pod, r, 0)
			own, foreign := mac(t, r), net.HardwareAddr{0x02, 1, 2, 3, 4, 5}
			ip := r.IPs()[0]
			other := netip.MustParseAddr("10.77.0.99")
			bridge, guest := listenOn(t, n.netns, "cni0"), listenOn(t, g.netns, g.link)
			advertisement := append([]byte{0x60, 0, 0, 0, 0, 8, 58, 255}, netip.MustParseAddr("fe80::1").AsSlice()...)
			advertisement = append(append(advertisement, netip.MustParseAddr("ff02::1").AsSlice()...), 134, 0, 0, 0, 0, 0, 0, 0)
			spoofed := map[string][]byte{
				"IP":                   broadcastFrame(own, unix.ETH_P_IP, udp4(other, everyone, 9, 9, []byte("as another"))),
				"MAC":                  broadcastFrame(foreign, unix.ETH_P_IP, udp4(ip, everyone, 9, 9, []byte("from elsewhere"))),
				"ARP":                  broadcastFrame(own, unix.ETH_P_ARP, arpReply(own, other)),
				"router advertisement": broadcastFrame(own, unix.ETH_P_IPV6, advertisement),
				"protocol":             broadcastFrame(own, 0x88cc, []byte("unknown")),
			}
			for _, f := range spoofed {
				guest.send(t, f)
			}
			mark := []byte("end-of-spoofing")
			guest.send(t, broadcastFrame(own, unix.ETH_P_IP, udp4(ip, everyone, 9, 9, mark)))
			arrived := map[string]bool{}
			note := func(f []byte) {
				for what, sent := range spoofed {
					arrived[what] = arrived[what] || bytes.HasPrefix(f, sent)
				}
			}
			for _, f := range bridge.until(t, mark) {
				note(f)
			}
			if !allowed {
				for what, yes := range arrived {
					if yes {
						t.Errorf("a frame with a spoofed %s arrived", what)
					}
				}
				return
			}
			// Frames may overtake one another on their way through two CPUs.
			timeout := time.After(testTimeout)
			for len(arrived) < len(spoofed) || slices.Contains(slices.Collect(maps.Values(arrived)), false) {
				select {
				case f := <-bridge.seen:
					note(f)
				case <-timeout:
					t.Fatalf("spoofed frames arrived: %v", arrived)
				}
			}
		})
	}
}

func arpReply(sha net.HardwareAddr, spa netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, sha...)
	b = append(b, spa.AsSlice()...)
	return append(append(b, bytes.Repeat([]byte{0xff}, 6)...), 10, 77, 0, 1)
}

// TestFloodedServer: a guest that floods its DHCP server is answered at a
// bounded rate, and the server still stops at once.
func TestFloodedServer(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.connected(pod)
	g := n.newGuest(pod, r, 0)
	guest := listenOn(t, g.netns, g.link)
	discover, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(mac(t, r)))
	must(t, err)
	frame := broadcastFrame(mac(t, r), unix.ETH_P_IP, udp4(netip.IPv4Unspecified(), everyone, 68, 67, discover.ToBytes()))
	began := time.Now()
	for range 2000 {
		if _, err := guest.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]}); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	answered := func() int {
		count := 0
		for {
			select {
			case f := <-guest.seen:
				if isDHCP(f) && binary.BigEndian.Uint16(f[36:]) == 68 {
					count++
				}
			default:
				return count
			}
		}
	}
	total := 0
	eventually(t, func() bool { total += answered(); return total > 0 }, func() string { return "no answer at all" })
	must(t, n.manager.Disconnect(pod.SandboxID))
	total += answered()
	if limit := 50 * (int(time.Since(began).Seconds()) + 2); total > limit {
		t.Errorf("%d answers in %s", total, time.Since(began))
	}
}

// TestOpenTapsNeedsConnect: no tap is made that leads nowhere.
func TestOpenTapsNeedsConnect(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.mustSetup(pod)
	defer func() { must(t, n.teardown(n.manager, pod)) }()
	taps, err := n.manager.OpenTaps(t.Context(), pod.SandboxID, r)
	if err == nil {
		t.Error("taps were opened before Connect")
	}
	closeAll(slices.Concat(taps...))
	must(t, n.manager.Connect(t.Context(), pod.SandboxID, r))
	r.Queues = 4  // too late
	for range 2 { // again after the first owner has gone
		taps, err := n.manager.OpenTaps(t.Context(), pod.SandboxID, r)
		must(t, err)
		if len(taps) != 1 || len(taps[0]) != 1 {
			t.Errorf("taps %v, want one with one queue", taps)
		}
		closeAll(slices.Concat(taps...))
	}
}

// TestManyQueues: each queue is a descriptor, and only one guest can have them.
func TestManyQueues(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(t)
	r := n.mustSetup(pod)
	defer func() { must(t, n.teardown(n.manager, pod)) }()
	r.Queues = 3
	must(t, n.manager.Connect(t.Context(), pod.SandboxID, r))
	r.Queues = 0 // as for another guest, with one CPU
	for _, queues := range []int{1, 4} {
		taps, err := n.manager.OpenTaps(t.Context(), pod.SandboxID, r)
		must(t, err)
		if len(taps) != 1 || len(taps[0]) != queues {
			t.Errorf("taps %v, want one with %d queues", taps, queues)
		}
		if _, err := n.manager.OpenTaps(t.Context(), pod.SandboxID, r); !errdefs.IsUnavailable(err) {
			t.Errorf("a second guest on the tap: %v", err)
		}
		must(t, n.manager.Connect(t.Context(), pod.SandboxID, r)) // as after a restart
		closeAll(slices.Concat(taps...))
		r.Queues = 4
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
