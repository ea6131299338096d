package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write golden files")

var (
	guestMAC  = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	serverMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0xff}
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// bridged is a pod on a common bridge network.
func bridged() Config {
	return Config{
		MAC: guestMAC, Address: prefix("10.1.2.3/24"),
		Gateways: []netip.Addr{addr("10.1.2.1")},
		Routes:   []Route{{prefix("0.0.0.0/0"), addr("10.1.2.1")}},
		DNS:      []netip.Addr{addr("10.96.0.10"), addr("10.96.0.11")},
		Search:   []string{"default.svc.cluster.local", "cluster.local."},
		Hostname: "vm-1", MTU: 1450,
	}
}

// routed is a pod whose gateway is outside its subnet, as Calico and ptp make.
func routed() Config {
	c := bridged()
	c.Address = prefix("10.1.2.3/32")
	c.Gateways = []netip.Addr{addr("169.254.1.1")}
	c.Routes = []Route{{Destination: prefix("169.254.1.1/32")}, {prefix("0.0.0.0/0"), addr("169.254.1.1")}}
	return c
}

// isolated is a pod without any gateway.
func isolated() Config {
	c := bridged()
	c.Gateways, c.Routes, c.DNS, c.Search, c.Hostname, c.MTU = nil, nil, nil, nil, "", 0
	return c
}

func message(t *testing.T, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}),
		dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(guestMAC),
	}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// frame puts a message into a frame as a client sends it.
func frame(src net.HardwareAddr, m *dhcpv4.DHCPv4) []byte {
	f := datagram{
		srcMAC: src, dstMAC: broadcastMAC,
		src: netip.IPv4Unspecified(), dst: limitedBroadcast, payload: m.ToBytes(),
	}.marshal()
	binary.BigEndian.PutUint16(f[34:], clientPort)
	binary.BigEndian.PutUint16(f[36:], serverPort)
	return f
}

// exchange sends a message and parses the answer as a client does.
func exchange(t *testing.T, c Config, m *dhcpv4.DHCPv4) (datagram, *dhcpv4.DHCPv4) {
	t.Helper()
	out, err := c.answer(serverMAC, frame(guestMAC, m))
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint16(out[36:], serverPort) // parse reads only what goes to a server
	d, err := parse(out)
	if err != nil {
		t.Fatalf("answer: %v", err)
	}
	reply, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		t.Fatalf("answer: %v", err)
	}
	return d, reply
}

func TestOffersGolden(t *testing.T) {
	for name, c := range map[string]Config{"bridged": bridged(), "routed": routed(), "isolated": isolated()} {
		t.Run(name, func(t *testing.T) {
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			d, reply := exchange(t, c, message(t, dhcpv4.MessageTypeDiscover))
			got := fmt.Sprintf("%s > %s, %s > %s\n%s", d.srcMAC, d.dstMAC, d.src, d.dst, reply.Summary())
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("offer (-want +got):\n%s", diff)
			}
		})
	}
}

func ip(s string) net.IP { return net.ParseIP(s) }

// TestStates goes through the client states of RFC 2131, table 4.
func TestStates(t *testing.T) {
	request := dhcpv4.MessageTypeRequest
	requested := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(s))) }
	server := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(s))) }
	client := func(s string) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(s)) }
	for _, c := range []struct {
		name string
		kind dhcpv4.MessageType
		mods []dhcpv4.Modifier
		want dhcpv4.MessageType
		dst  string
	}{
		{"discover", dhcpv4.MessageTypeDiscover, nil, dhcpv4.MessageTypeOffer, "10.1.2.3"},
		{"discover, broadcast flag", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeOffer, "255.255.255.255"},
		{"selecting", request, []dhcpv4.Modifier{requested("10.1.2.3"), server("10.1.2.1")}, dhcpv4.MessageTypeAck, "10.1.2.3"},
		{"selecting another address", request, []dhcpv4.Modifier{requested("10.1.2.4"), server("10.1.2.1")}, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"init-reboot", request, []dhcpv4.Modifier{requested("10.1.2.3")}, dhcpv4.MessageTypeAck, "10.1.2.3"},
		{"init-reboot with a former pod's address", request, []dhcpv4.Modifier{requested("10.9.9.9")}, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"renewing or rebinding", request, []dhcpv4.Modifier{client("10.1.2.3")}, dhcpv4.MessageTypeAck, "10.1.2.3"},
		{"renewing, broadcast flag", request, []dhcpv4.Modifier{client("10.1.2.3"), dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeAck, "10.1.2.3"},
		{"renewing another address", request, []dhcpv4.Modifier{client("10.1.2.4")}, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"request for nothing", request, nil, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"inform", dhcpv4.MessageTypeInform, []dhcpv4.Modifier{client("10.1.2.3")}, dhcpv4.MessageTypeAck, "10.1.2.3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, reply := exchange(t, bridged(), message(t, c.kind, c.mods...))
			if reply.MessageType() != c.want || d.dst.String() != c.dst {
				t.Errorf("got %s to %s, want %s to %s", reply.MessageType(), d.dst, c.want, c.dst)
			}
			if got := reply.ServerIdentifier().String(); got != "10.1.2.1" {
				t.Errorf("server identifier %s", got)
			}
			granted := c.want != dhcpv4.MessageTypeNak && c.kind != dhcpv4.MessageTypeInform
			if has := reply.Options.Has(dhcpv4.OptionIPAddressLeaseTime); has != granted {
				t.Errorf("lease time given: %v, want %v", has, granted)
			}
			if has := !reply.YourIPAddr.IsUnspecified(); has != granted {
				t.Errorf("address given: %v, want %v", has, granted)
			}
		})
	}
}

func TestIgnored(t *testing.T) {
	other := net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	discover := func(mods ...dhcpv4.Modifier) []byte {
		return frame(guestMAC, message(t, dhcpv4.MessageTypeDiscover, mods...))
	}
	patched := func(at int, b byte) []byte {
		f := discover()
		f[at] = b
		return f
	}
	reply := message(t, dhcpv4.MessageTypeDiscover)
	reply.OpCode = dhcpv4.OpcodeBootReply
	for name, c := range map[string]struct {
		f    []byte
		want string
	}{
		"another frame MAC":      {frame(other, message(t, dhcpv4.MessageTypeDiscover)), "not of the guest"},
		"another hardware addr":  {discover(dhcpv4.WithHwAddr(other)), "not the guest's"},
		"relayed":                {discover(dhcpv4.WithGatewayIP(ip("10.1.2.9"))), "relayed"},
		"a reply":                {frame(guestMAC, reply), "a reply"},
		"another server's offer": {frame(guestMAC, message(t, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip("10.1.2.9"))))), "request to server 10.1.2.9"},
		"release":                {frame(guestMAC, message(t, dhcpv4.MessageTypeRelease)), "RELEASE"},
		"decline":                {frame(guestMAC, message(t, dhcpv4.MessageTypeDecline)), "DECLINE"},
		"no type":                {frame(guestMAC, message(t, dhcpv4.MessageTypeNone)), "message of type"},
		"empty":                  {nil, "too short"},
		"not IPv4":               {patched(12, 0x86), "not UDP over IPv4"},
		"IP options":             {patched(14, 0x46), "not UDP over IPv4"},
		"TCP":                    {patched(23, 6), "not UDP over IPv4"},
		"fragment":               {patched(21, 1), "a fragment"},
		"first fragment":         {patched(20, 0x20), "a fragment"},
		"IP too long":            {patched(16, 0xff), "IP length"},
		"UDP too long":           {patched(38, 0xff), "UDP length"},
		"another port":           {patched(37, 68), "not to port 67"},
		"no DHCP":                {patched(14+28+236, 0), "magic cookie"},
		"cut short":              {discover()[:100], "IP length"},
		"too much to echo":       {discover(dhcpv4.WithOption(dhcpv4.OptClientIdentifier(make([]byte, 1400)))), "exceeds the MTU"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := bridged().answer(serverMAC, c.f)
			if !errors.Is(err, errIgnored) || !strings.Contains(err.Error(), c.want) || out != nil {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestRequestedOptionsOnly(t *testing.T) {
	_, reply := exchange(t, routed(), message(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter)))
	for code, want := range map[dhcpv4.OptionCode]bool{
		dhcpv4.OptionSubnetMask: true, dhcpv4.OptionRouter: true, dhcpv4.OptionServerIdentifier: true,
		dhcpv4.OptionClasslessStaticRoute: false, dhcpv4.OptionDomainNameServer: false, dhcpv4.OptionHostName: false,
	} {
		if has := reply.Options.Has(code); has != want {
			t.Errorf("option %s: %v, want %v", code, has, want)
		}
	}
}

func TestAnswerFits(t *testing.T) {
	c := bridged()
	for i := range 20 {
		c.Search = append(c.Search, fmt.Sprintf("team-%d.department.company.example", i))
	}
	small, large := dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(100)), dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1500))
	for name, x := range map[string]struct {
		mods []dhcpv4.Modifier
		max  int
		has  bool
	}{
		"by default":        {nil, 576, false},
		"too small a limit": {[]dhcpv4.Modifier{small}, 576, false},
		"large":             {[]dhcpv4.Modifier{large}, 1450, true},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := c.answer(serverMAC, frame(guestMAC, message(t, dhcpv4.MessageTypeDiscover, x.mods...)))
			if err != nil || len(out)-etherHeaderLen > x.max {
				t.Fatalf("%d bytes, %v; want at most %d", len(out)-etherHeaderLen, err, x.max)
			}
			_, reply := exchange(t, c, message(t, dhcpv4.MessageTypeDiscover, x.mods...))
			if has := reply.Options.Has(dhcpv4.OptionDNSDomainSearchList); has != x.has {
				t.Errorf("search list told: %v, want %v", has, x.has)
			}
			if reply.Router() == nil || reply.DNS() == nil {
				t.Error("router or DNS server got lost")
			}
		})
	}
}

func TestDomains(t *testing.T) {
	got := domains([]string{"a.b.", "", ".", "a..b", strings.Repeat("x", 64) + ".y", strings.Repeat("abc.", 80), "ok"})
	if diff := cmp.Diff([]string{"a.b", "ok"}, got); diff != "" {
		t.Errorf("domains (-want +got):\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"MAC":     func(c *Config) { c.MAC = nil },
		"address": func(c *Config) { c.Address = prefix("fd00::1/64") },
		"none":    func(c *Config) { c.Address = netip.Prefix{} },
		"DNS":     func(c *Config) { c.DNS = []netip.Addr{addr("fd00::1")} },
		"route":   func(c *Config) { c.Routes = []Route{{prefix("::/0"), addr("10.1.2.1")}} },
		"gateway": func(c *Config) { c.Gateways = []netip.Addr{addr("fe80::1")} },
	} {
		c := bridged()
		change(&c)
		if err := c.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestChecksums verifies both sums as a receiver does: over everything they are
// all ones.
func TestChecksums(t *testing.T) {
	for _, payload := range [][]byte{{}, {1}, {1, 2}, bytes.Repeat([]byte{0xff}, 301)} {
		f := datagram{srcMAC: serverMAC, dstMAC: guestMAC, src: addr("10.1.2.1"), dst: addr("10.1.2.3"), payload: payload}.marshal()
		ip, udp := f[14:34], f[34:]
		if sum(ip, 0) != 0xffff {
			t.Errorf("IP checksum of % x", ip)
		}
		if pseudo := sum(ip[12:20], uint32(17+len(udp))); sum(udp, uint32(pseudo)) != 0xffff {
			t.Errorf("UDP checksum of % x", udp)
		}
	}
}

// FuzzAnswer: whatever a guest sends, an answer is well formed and within the
// bounds, and goes to the guest alone.
func FuzzAnswer(f *testing.F) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(guestMAC))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame(guestMAC, m))
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(ip("10.1.2.3")))
	m.UpdateOption(dhcpv4.OptMaxMessageSize(65535))
	m.UpdateOption(dhcpv4.OptClientIdentifier(bytes.Repeat([]byte{1}, 255)))
	f.Add(frame(guestMAC, m))
	configs := []Config{bridged(), routed(), isolated()}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > maxFrame {
			in = in[:maxFrame]
		}
		for _, c := range configs {
			out, err := c.answer(serverMAC, bytes.Clone(in))
			if err != nil {
				if out != nil {
					t.Fatal("an answer and an error")
				}
				continue
			}
			if !bytes.Equal(out[0:6], guestMAC) && !bytes.Equal(out[0:6], broadcastMAC) {
				t.Fatalf("answer to %x", out[0:6])
			}
			if len(out)-etherHeaderLen > c.mtu() {
				t.Fatalf("answer of %d bytes", len(out))
			}
			if total := int(binary.BigEndian.Uint16(out[16:])); total != len(out)-etherHeaderLen {
				t.Fatalf("IP length %d in %d bytes", total, len(out))
			}
			if _, err := dhcpv4.FromBytes(out[42:]); err != nil {
				t.Fatalf("answer does not parse: %v", err)
			}
		}
	})
}
