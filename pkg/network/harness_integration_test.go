//go:build integration

package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/netns"
	"github.com/ambipod/ambipod/pkg/network/tap"
)

// testTimeout is far above what any step takes on a loaded machine.
const testTimeout = 60 * time.Second

// node is a private "host": a network namespace in which CNI plugins run.
type node struct {
	t       testing.TB
	dir     string
	netns   string
	conf    string
	leases  string
	manager *Manager
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	for _, plugin := range []string{"bridge", "host-local", "portmap", "bandwidth", "ptp"} {
		if _, err := os.Stat(filepath.Join(pluginDir(), plugin)); err != nil {
			t.Fatalf("install the Debian package containernetworking-plugins: %v", err)
		}
	}
	dir := t.TempDir()
	n := &node{t: t, dir: dir, netns: filepath.Join(dir, "host"), conf: filepath.Join(dir, "net.d"), leases: filepath.Join(dir, "leases")}
	must(t, os.Mkdir(n.conf, 0o755))
	must(t, netns.Create(n.netns))
	t.Cleanup(func() { must(t, netns.Remove(n.netns)) })
	n.manager = n.newManager(Options{})
	return n
}

func pluginDir() string { return "/usr/lib/cni" }

// newManager makes a manager as a (re)started daemon would.
func (n *node) newManager(o Options) *Manager {
	n.t.Helper()
	o.ConfDir, o.CacheDir, o.NetNSDir = n.conf, filepath.Join(n.dir, "cache"), filepath.Join(n.dir, "netns")
	if o.BinDirs == nil {
		o.BinDirs = []string{pluginDir()}
	}
	m, err := New(o)
	must(n.t, err)
	n.t.Cleanup(func() { must(n.t, m.Close()) })
	return m
}

// writeConf writes a configuration list with these plugins.
func (n *node) writeConf(plugins ...map[string]any) {
	n.t.Helper()
	b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "testnet", "plugins": plugins})
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(n.conf, "10-test.conflist"), b, 0o600))
}

// bridge is a plugin configuration with subnets of the given prefixes.
func (n *node) bridge(subnets ...string) map[string]any {
	var ranges []any
	var routes []any
	for _, s := range subnets {
		ranges = append(ranges, []any{map[string]any{"subnet": s}})
		dst := "0.0.0.0/0"
		if strings.Contains(s, ":") {
			dst = "::/0"
		}
		routes = append(routes, map[string]any{"dst": dst})
	}
	return map[string]any{
		"type": "bridge", "bridge": "cni0", "isGateway": true, "mtu": 1450, "hairpinMode": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": n.leases, "ranges": ranges, "routes": routes},
	}
}

// onHost runs f in the host's namespace.
func (n *node) onHost(f func() error) error { return netns.Do(n.netns, f) }

func (n *node) setup(pod Pod) (*Result, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), testTimeout)
	defer cancel()
	var r *Result
	err := n.onHost(func() error {
		var err error
		r, err = n.manager.Setup(ctx, pod)
		return err
	})
	return r, err
}

func (n *node) mustSetup(pod Pod) *Result {
	n.t.Helper()
	r, err := n.setup(pod)
	must(n.t, err)
	return r
}

func (n *node) teardown(m *Manager, pod Pod) error {
	return n.onHost(func() error { return m.Teardown(context.WithoutCancel(n.t.Context()), pod) })
}

// connected sets a pod up, connects it and tears it down at the end.
func (n *node) connected(pod Pod) *Result {
	n.t.Helper()
	r := n.mustSetup(pod)
	n.t.Cleanup(func() { must(n.t, n.teardown(n.manager, pod)) })
	must(n.t, n.manager.Connect(n.t.Context(), pod.SandboxID, r))
	return r
}

// assertClean fails if anything of a pod is left.
func (n *node) assertClean() {
	n.t.Helper()
	for _, dir := range []string{
		filepath.Join(n.dir, "netns"), filepath.Join(n.dir, "cache/attachments"),
		filepath.Join(n.dir, "cache/results"), filepath.Join(n.leases, "testnet"),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.t.Error(err)
		}
		for _, e := range entries {
			if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip") {
				n.t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	// The kernel removes a dead namespace's interfaces in its own time.
	var left []string
	eventually(n.t, func() bool {
		left = n.podLinks()
		return len(left) == 0
	}, func() string { return fmt.Sprintf("left behind: %v", left) })
}

// podLinks lists what CNI plugins make on the host for one pod.
func (n *node) podLinks() []string {
	n.t.Helper()
	h, err := netns.Netlink(n.netns)
	must(n.t, err)
	defer h.Close()
	links, err := h.LinkList()
	must(n.t, err)
	var out []string
	for _, l := range links {
		if l.Type() == "veth" || l.Type() == "ifb" {
			out = append(out, l.Attrs().Name)
		}
	}
	return out
}

// settle waits until no IPv6 address of the host is tentative: until then the
// host would talk to pods from whatever other address it has.
func (n *node) settle() {
	n.t.Helper()
	h, err := netns.Netlink(n.netns)
	must(n.t, err)
	defer h.Close()
	eventually(n.t, func() bool {
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		must(n.t, err)
		return !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	}, func() string { return "the host's IPv6 addresses stay tentative" })
}

// eventually waits until ok, and fails the test with what at the end.
func eventually(t testing.TB, ok func() bool, what func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Error(what())
			return
		}
	}
}

func testPod(t testing.TB) Pod {
	t.Helper()
	var b [32]byte
	rand.Read(b[:])
	return Pod{
		SandboxID: hex.EncodeToString(b[:]), Name: "vm", Namespace: "default", UID: "uid-1", Hostname: "vm-1",
		DNS: DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local", "cluster.local"}},
	}
}

// guest is a network namespace whose eth0 is plugged into a pod's tap, in place
// of a VM: it has a whole IP stack, and the pod's MAC.
type guest struct {
	t      testing.TB
	netns  string
	link   string
	iface  Interface
	unplug func() error // powers the guest off; its namespace stays
}

// newGuest boots a guest on the pod's i-th interface.
func (n *node) newGuest(pod Pod, r *Result, i int) *guest {
	n.t.Helper()
	taps, err := n.manager.OpenTaps(n.t.Context(), pod.SandboxID, r)
	must(n.t, err)
	g := n.bootGuest(r.Interfaces[i], taps[i][0])
	for j, files := range taps {
		if j != i {
			closeAll(files)
		}
	}
	return g
}

// bootGuest boots a guest with the interface on a tap, which it closes.
func (n *node) bootGuest(iface Interface, port *os.File) *guest {
	n.t.Helper()
	g := &guest{t: n.t, netns: filepath.Join(n.dir, "guest-"+rand.Text()), link: "eth0", iface: iface}
	must(n.t, netns.Create(g.netns))
	n.t.Cleanup(func() { must(n.t, netns.Remove(g.netns)) })
	mac, err := net.ParseMAC(g.iface.MAC)
	must(n.t, err)
	var card *os.File
	must(n.t, netns.Do(g.netns, func() error {
		files, err := tap.Open(g.link, false, 1)
		if err != nil {
			return err
		}
		card = files[0]
		link, err := netlink.LinkByName(g.link)
		if err != nil {
			return err
		}
		return errors.Join(
			netlink.LinkSetHardwareAddr(link, mac), netlink.LinkSetMTU(link, g.iface.MTU),
			netlink.LinkSetUp(link))
	}))
	g.plug(card, port)
	return g
}

// plug carries frames both ways until the test ends.
func (g *guest) plug(a, b *os.File) {
	a, b = pollable(g.t, a), pollable(g.t, b)
	var copiers sync.WaitGroup
	for _, pair := range [][2]*os.File{{a, b}, {b, a}} {
		copiers.Go(func() {
			buf := make([]byte, 70000)
			for {
				n, err := pair[0].Read(buf)
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = pair[1].Write(buf[:n]) // a link that is down loses frames
				}
			}
		})
	}
	g.unplug = sync.OnceValue(func() error {
		err := errors.Join(a.Close(), b.Close())
		copiers.Wait()
		return err
	})
	g.t.Cleanup(func() { must(g.t, g.unplug()) })
}

// pollable makes a file whose Read ends when it is closed.
func pollable(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	must(t, err)
	must(t, f.Close())
	must(t, unix.SetNonblock(fd, true))
	return os.NewFile(uintptr(fd), f.Name())
}

// dhcp runs a real DHCP client and returns the acknowledged lease.
func (g *guest) dhcp(ctx context.Context, mods ...dhcpv4.Modifier) (*nclient4.Lease, error) {
	c, err := g.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Request(ctx, mods...)
}

func (g *guest) client() (*nclient4.Client, error) {
	var c *nclient4.Client
	err := netns.Do(g.netns, func() error {
		var err error
		c, err = nclient4.New(g.link, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(5))
		return err
	})
	return c, err
}

// configure gives the guest the addresses and routes of the Result, as
// cloud-init's network configuration would.
func (g *guest) configure(r *Result) {
	g.t.Helper()
	must(g.t, netns.Do(g.netns, func() error {
		link, err := netlink.LinkByName(g.link)
		if err != nil {
			return err
		}
		for _, p := range g.iface.Addresses {
			a := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
		for _, route := range r.Routes {
			if route.Interface != g.iface.Name {
				continue
			}
			kr := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(route.Destination)}
			if route.Gateway.IsValid() {
				kr.Gw = route.Gateway.AsSlice()
			} else {
				kr.Scope = netlink.SCOPE_LINK
			}
			if err := netlink.RouteAdd(kr); err != nil {
				return fmt.Errorf("route %v: %w", route, err)
			}
		}
		return nil
	}))
}

// echo serves TCP on addr in the namespace at path until the test ends.
func echo(t testing.TB, path, addr string) {
	t.Helper()
	var l net.Listener
	must(t, netns.Do(path, func() error {
		var err error
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
		return err
	}))
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(testTimeout))
				_, _ = c.Write([]byte("hello from " + c.LocalAddr().String()))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
}

// dial fetches the echo server's greeting from inside the namespace at path.
func dial(t testing.TB, path, addr string, timeout time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var c net.Conn
	err := netns.Do(path, func() error {
		var err error
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func mustDial(t testing.TB, path, addr string) {
	t.Helper()
	got, err := dial(t, path, addr, testTimeout)
	if err != nil || !strings.HasPrefix(got, "hello from ") {
		t.Errorf("dial %s: %q, %v", addr, got, err)
	}
}

func web(a netip.Addr) string { return netip.AddrPortFrom(a, 80).String() }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filterHandles lists what changes when filters are replaced.
func filterHandles(t testing.TB, r *Result) []string {
	t.Helper()
	h, err := netns.Netlink(r.NetNS)
	must(t, err)
	defer h.Close()
	var out []string
	for _, name := range []string{"eth0", tapName(0)} {
		link, err := h.LinkByName(name)
		must(t, err)
		filters, err := h.FilterList(link, netlink.MakeHandle(0xffff, 0))
		must(t, err)
		for _, f := range filters {
			u32, ok := f.(*netlink.U32)
			if !ok {
				t.Fatalf("filter of type %s on %s", f.Type(), name)
			}
			for _, a := range u32.Actions {
				out = append(out, fmt.Sprintf("%s %x action %d", name, u32.Handle, a.Attrs().Index))
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("no filters")
	}
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// IPs returns the sandbox's addresses, the first interface's first.
func (r *Result) IPs() []netip.Addr {
	var out []netip.Addr
	for _, i := range r.Interfaces {
		for _, a := range i.Addresses {
			out = append(out, a.Addr())
		}
	}
	return out
}
