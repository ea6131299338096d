//go:build integration

package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/netns"
	"github.com/ambipod/ambipod/pkg/network/tap"
)

// BenchmarkDatapath compares a pod's path (bridge, veth, redirect, tap) with that
// of a plain tap on the same bridge, as QEMU uses without Ambipod. The guest is
// the same in both: a namespace behind a tap with a virtio guest's offloads.
func BenchmarkDatapath(b *testing.B) {
	n := newNode(b)
	n.writeConf(n.bridge("10.77.0.0/24"))
	pod := testPod(b)
	r := n.connected(pod)
	for _, x := range []struct {
		name string
		ip   netip.Addr
		open func(*testing.B) *os.File
	}{
		{"plain", netip.MustParseAddr("10.77.0.200"), n.plainTap},
		{"pod", r.IPs()[0], func(b *testing.B) *os.File {
			b.Helper()
			taps, err := n.manager.OpenTaps(b.Context(), pod.SandboxID, r)
			must(b, err)
			return taps[0][0]
		}},
	} {
		iface := r.Interfaces[0]
		iface.Addresses = []netip.Prefix{netip.PrefixFrom(x.ip, 24)}
		if x.name == "plain" {
			iface.MAC = "02:00:00:00:00:77"
		}
		guest := n.bootGuest(iface, offloaded(b, x.open(b)))
		guest.configure(&Result{})
		throughput := sink(b, guest.netns, web(x.ip))
		b.Run(x.name+"/throughput", func(b *testing.B) { throughput(b, n.netns) })
		b.Run(x.name+"/latency", func(b *testing.B) { roundTrips(b, guest.netns, n.netns, x.ip) })
	}
}

// plainTap is a tap on the host's bridge.
func (n *node) plainTap(b *testing.B) *os.File {
	b.Helper()
	var f *os.File
	must(b, n.onHost(func() error {
		files, err := tap.Open("plain0", false, 1)
		if err != nil {
			return err
		}
		f = files[0]
		link, err := netlink.LinkByName("plain0")
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMTU(link, 1450), netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(link))
	}))
	return f
}

// offloaded lets a tap pass large segments without checksums, as QEMU does for a
// Linux guest.
func offloaded(b *testing.B, f *os.File) *os.File {
	b.Helper()
	must(b, unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6))
	return f
}

const chunk = 1 << 20

// sink serves a server that swallows what it is sent; the function it returns
// sends b.N chunks there.
func sink(b *testing.B, path, addr string) func(*testing.B, string) {
	b.Helper()
	return func(b *testing.B, from string) {
		l := listenIn(b, path, addr)
		defer l.Close()
		received := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = io.CopyN(io.Discard, c, int64(b.N)*chunk)
				err = errors.Join(err, c.Close())
			}
			received <- err
		}()
		c := dialFrom(b, from, addr)
		defer c.Close()
		data := make([]byte, chunk)
		b.SetBytes(chunk)
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(data); err != nil {
				b.Fatal(err)
			}
		}
		must(b, <-received)
	}
}

// roundTrips sends one byte there and back, b.N times.
func roundTrips(b *testing.B, server, client string, ip netip.Addr) {
	b.Helper()
	l := listenIn(b, server, netip.AddrPortFrom(ip, 81).String())
	defer l.Close()
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(c, c, int64(b.N))
			err = errors.Join(err, c.Close())
		}
		echoed <- err
	}()
	c := dialFrom(b, client, l.Addr().String())
	defer c.Close()
	buf := make([]byte, 1)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	must(b, <-echoed)
}

func listenIn(b *testing.B, path, addr string) net.Listener {
	b.Helper()
	var l net.Listener
	must(b, netns.Do(path, func() error {
		var err error
		l, err = (&net.ListenConfig{}).Listen(b.Context(), "tcp", addr)
		return err
	}))
	return l
}

func dialFrom(b *testing.B, path, addr string) net.Conn {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), testTimeout)
	defer cancel()
	var c net.Conn
	must(b, netns.Do(path, func() error {
		var err error
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	}))
	must(b, c.SetDeadline(time.Now().Add(testTimeout)))
	return c
}

// BenchmarkSetup times what a pod's start waits for: CNI ADD (whose plugins are
// most of it), then what Ambipod adds to it.
func BenchmarkSetup(b *testing.B) {
	n := newNode(b)
	n.writeConf(n.bridge("10.77.0.0/24"))
	var add, connect, open, remove time.Duration
	for b.Loop() {
		pod := testPod(b)
		began := time.Now()
		r := n.mustSetup(pod)
		add += lap(&began)
		must(b, n.manager.Connect(b.Context(), pod.SandboxID, r))
		connect += lap(&began)
		taps, err := n.manager.OpenTaps(b.Context(), pod.SandboxID, r)
		must(b, err)
		open += lap(&began)
		closeAll(slices.Concat(taps...))
		began = time.Now()
		must(b, n.teardown(n.manager, pod))
		remove += lap(&began)
	}
	for unit, d := range map[string]time.Duration{"ms-setup": add, "ms-connect": connect, "ms-open": open, "ms-teardown": remove} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), unit)
	}
}

func lap(began *time.Time) time.Duration {
	now := time.Now()
	d := now.Sub(*began)
	*began = now
	return d
}
