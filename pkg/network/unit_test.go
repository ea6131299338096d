package network

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/dhcp"
)

func TestLocks(t *testing.T) {
	var locks keyedLocks
	counts := map[string]*int{"a": new(int), "b": new(int)}
	var users sync.WaitGroup
	for range 50 {
		for key, n := range counts {
			users.Go(func() {
				defer locks.lock(key)()
				*n++ // the race detector watches
			})
		}
	}
	users.Wait()
	if *counts["a"] != 50 || *counts["b"] != 50 || len(locks.held) != 0 {
		t.Errorf("counted %d and %d, %d locks left", *counts["a"], *counts["b"], len(locks.held))
	}
	unlock := locks.lock("a")
	locks.lock("b")() // is not held up by a
	unlock()
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{CacheDir: "cache", NetNSDir: "/x"}, {CacheDir: "/x", NetNSDir: ""}} {
		if _, err := New(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

func TestAttachmentStore(t *testing.T) {
	s := attachmentStore{dir: t.TempDir()}
	a := attachment{
		SandboxID: "sandbox", NetNS: "/n", Config: json.RawMessage(`{"name":"x"}`),
		Args: [][2]string{{"K", "v"}}, Capabilities: map[string]any{"cgroupPath": "/x"},
	}
	if _, err := s.load("sandbox"); !errdefs.IsNotFound(err) {
		t.Errorf("before: %v", err)
	}
	for range 2 {
		if err := s.save(a); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.load("sandbox")
	if diff := cmp.Diff(a, got); err != nil || diff != "" {
		t.Errorf("loaded: %v\n%s", err, diff)
	}
	// What a crash in the middle of saving leaves is no attachment.
	if err := os.WriteFile(filepath.Join(s.dir, ".new-123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := s.ids(); err != nil || len(ids) != 1 || ids[0] != "sandbox" {
		t.Errorf("ids: %v, %v", ids, err)
	}
	for range 2 {
		if err := s.remove("sandbox"); err != nil {
			t.Error(err)
		}
	}
}

func TestConfigWithSeparatePluginFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("10-net.conflist", `{"cniVersion":"1.1.0","name":"net","disableCheck":true,"plugins":[{"type":"first"}]}`)
	write("net/20-second.conf", `{"type":"second","capabilities":{"dns":true}}`)
	list, err := readConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := inlined(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "net")); err != nil {
		t.Fatal(err)
	}
	stored, err := attachment{Config: doc}.list()
	if err != nil {
		t.Fatal(err)
	}
	if len(stored.Plugins) != 2 || stored.Plugins[1].Network.Type != "second" || !stored.DisableCheck || !hasCapability(stored, "dns") || hasCapability(stored, "x") {
		t.Errorf("stored configuration: %s", doc)
	}
}

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPluginExec(t *testing.T) {
	var e pluginExec
	out, err := e.ExecPlugin(t.Context(), script(t, `echo noise >&2; echo "$X $(cat)"`), []byte("in"), []string{"X=y", "PATH=/bin:/usr/bin"})
	if err != nil || string(out) != "y in\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = e.ExecPlugin(t.Context(), script(t, "exec head -c 5000000 /dev/zero"), nil, []string{"PATH=/bin:/usr/bin"})
	if !errdefs.IsDataLoss(err) {
		t.Errorf("endless output: %v", err)
	}
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("pod deleted"))
	if _, err = e.ExecPlugin(canceled, script(t, "exit 0"), nil, nil); err == nil || !strings.Contains(err.Error(), "pod deleted") {
		t.Errorf("canceled: %v", err)
	}
}

// TestPluginIsFoundInRoot: a plugin of the node is where links lead there.
func TestPluginIsFoundInRoot(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/libexec/cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr/libexec/cni/bridge"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/libexec/cni", filepath.Join(root, "opt/cni")); err != nil {
		t.Fatal(err)
	}
	e := pluginExec{root: root}
	if path, err := e.FindInPath("bridge", []string{"/nowhere", "/opt/cni"}); err != nil || path != "/usr/libexec/cni/bridge" {
		t.Errorf("found %q, %v", path, err)
	}
	for _, name := range []string{"", "ptp", "../cni/bridge", "cni"} {
		if path, err := e.FindInPath(name, []string{"/opt/cni", "/usr/libexec"}); err == nil {
			t.Errorf("plugin %q was found at %s", name, path)
		}
	}
}

// TestPluginWhoseCallerLeaves: a plugin gets done what it has begun, unless that takes too
// long.
func TestPluginWhoseCallerLeaves(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		work string
		done bool
	}{
		"busy":  {"sleep 0.3", true},
		"hangs": {"sleep 1000 & sleep 1000", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			begun, done := filepath.Join(dir, "begun"), filepath.Join(dir, "done")
			path := script(t, "echo >"+begun+"\n"+test.work+"\necho >"+done)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := new(pluginExec).ExecPlugin(ctx, path, nil, nil)
				ended <- err
			}()
			for _, err := os.Stat(begun); err != nil; _, err = os.Stat(begun) {
				select {
				case err := <-ended:
					t.Fatalf("the plugin ended at once: %v", err)
				case <-time.After(10 * time.Millisecond):
				}
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the caller who left is told %v", err)
			}
			if _, err := os.Stat(done); (err == nil) != test.done {
				t.Errorf("the plugin got done: %v", err)
			}
		})
	}
}

// TestPluginBeingWritten: a program that is open for writing is waited for.
func TestPluginBeingWritten(t *testing.T) {
	path := script(t, "exit 0")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var e pluginExec
	ctx, cancel := context.WithTimeout(t.Context(), 3*busyDelay/2)
	defer cancel()
	if _, err := e.ExecPlugin(ctx, path, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while written: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ExecPlugin(t.Context(), path, nil, nil); err != nil {
		t.Errorf("after: %v", err)
	}
}

func TestDHCPConfig(t *testing.T) {
	r := &Result{
		Hostname: "vm", DNS: DNS{Servers: []string{"10.96.0.10", "fd00::a", "nonsense"}, Searches: []string{"a.b"}},
		Interfaces: []Interface{
			{
				Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1450,
				Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::5/64"), netip.MustParsePrefix("10.1.2.3/24")},
				Gateways:  []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.1.2.1")},
			},
			{Name: "net1", MAC: "02:00:00:00:00:02", Addresses: []netip.Prefix{netip.MustParsePrefix("fd01::5/64")}},
			{Name: "net2", MAC: "nonsense"},
		},
		Routes: []Route{
			{Interface: "eth0", Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.2.1")},
			{Interface: "eth0", Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00::1")},
			{Interface: "net1", Destination: netip.MustParsePrefix("10.5.0.0/16")},
		},
	}
	got, ok, err := dhcpConfig(r, r.Interfaces[0])
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	want := dhcp.Config{
		MAC: got.MAC, Address: netip.MustParsePrefix("10.1.2.3/24"), MTU: 1450, Hostname: "vm", Search: []string{"a.b"},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.1")}, DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Routes: []dhcp.Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.2.1")}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if _, ok, err := dhcpConfig(r, r.Interfaces[1]); ok || err != nil {
		t.Errorf("IPv6 alone: %v, %v", ok, err)
	}
	if _, _, err := dhcpConfig(r, r.Interfaces[2]); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad MAC: %v", err)
	}
}

func TestToRoute(t *testing.T) {
	link := func(s string) netlink.Route {
		p := netip.MustParsePrefix(s)
		n, err := netlink.ParseIPNet(p.String())
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Route{Type: unix.RTN_UNICAST, Dst: n}
	}
	blackhole := link("10.0.0.0/8")
	blackhole.Type = unix.RTN_BLACKHOLE
	for name, r := range map[string]netlink.Route{
		"link-local": link("fe80::/64"), "multicast": link("ff00::/8"), "blackhole": blackhole,
	} {
		if got, ok := toRoute(r, "eth0", netlink.FAMILY_V6); ok {
			t.Errorf("%s became %v", name, got)
		}
	}
	got, ok := toRoute(netlink.Route{Type: unix.RTN_UNICAST, Priority: 7}, "eth0", netlink.FAMILY_V6)
	if want := (Route{Interface: "eth0", Destination: netip.MustParsePrefix("::/0"), Metric: 7}); !ok || got != want || !got.IsDefault() {
		t.Errorf("default route on the link: %+v", got)
	}
}

// TestGateways: default routes' next hops come first, then what plugins said of
// this interface, whatever nonsense the indices are.
func TestGateways(t *testing.T) {
	index := func(i int) *int { return &i }
	told := &types100.Result{Interfaces: []*types100.Interface{{Name: "eth0"}, {Name: "net1"}}}
	for i, gw := range map[int]string{0: "10.0.0.3", 1: "10.0.0.4", 7: "10.0.0.5", -1: "10.0.0.6"} {
		told.IPs = append(told.IPs, &types100.IPConfig{Interface: index(i), Gateway: netip.MustParseAddr(gw).AsSlice()})
	}
	told.IPs = append(told.IPs, &types100.IPConfig{})
	routes := []Route{
		{Destination: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.2")},
		{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.0.0.1")},
		{Destination: netip.MustParsePrefix("10.8.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.1")},
	}
	var got []string
	for _, a := range gateways(routes, "eth0", told) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, got); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
}

func TestMergeDNS(t *testing.T) {
	told := &types100.Result{}
	told.DNS.Nameservers, told.DNS.Domain, told.DNS.Options = []string{"1.1.1.1"}, "example", []string{"ndots:1"}
	if diff := cmp.Diff(DNS{Servers: []string{"1.1.1.1"}, Searches: []string{"example"}, Options: []string{"ndots:1"}}, mergeDNS(DNS{Searches: []string{"x"}}, told)); diff != "" {
		t.Errorf("CNI's (-want +got):\n%s", diff)
	}
	pod := DNS{Servers: []string{"10.96.0.10"}}
	if diff := cmp.Diff(pod, mergeDNS(pod, told)); diff != "" {
		t.Errorf("the pod's (-want +got):\n%s", diff)
	}
}
