package redirect

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write golden files")

func testGuest() Guest {
	return Guest{
		MAC:       net.HardwareAddr{0x02, 0, 0, 0xaa, 0xbb, 0xcc},
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00:1::5")},
	}
}

func TestRulesGolden(t *testing.T) {
	router := testGuest()
	router.AllowSpoofing = true
	for name, g := range map[string]Guest{"guarded": testGuest(), "spoofing": router} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			fmt.Fprintln(&b, "# from the network")
			for _, r := range InterfaceRules(g) {
				fmt.Fprintln(&b, r)
			}
			fmt.Fprintln(&b, "# from the guest")
			for _, r := range TapRules(g) {
				fmt.Fprintln(&b, r)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

// frame is an Ethernet frame; verdict runs it through rules as the kernel's u32
// does.
type frame []byte

func verdict(rules []Rule, f frame) (Target, string) {
	ethertype := uint16(f[12])<<8 | uint16(f[13])
	for _, r := range rules {
		if r.Protocol != 3 && r.Protocol != ethertype { // ETH_P_ALL is 3
			continue
		}
		if matches(r, f) {
			return r.Target, r.Why
		}
	}
	return ToLocal, "no rule"
}

func matches(r Rule, f frame) bool {
	for _, m := range r.Matches {
		at := 14 + int(m.Offset)
		if at < 0 || at+4 > len(f) {
			return false
		}
		have := uint32(f[at])<<24 | uint32(f[at+1])<<16 | uint32(f[at+2])<<8 | uint32(f[at+3])
		if have&m.Mask != m.Value {
			return false
		}
	}
	return true
}

var (
	own     = []byte{0x02, 0, 0, 0xaa, 0xbb, 0xcc}
	foreign = []byte{0x02, 0, 0, 0xaa, 0xbb, 0xcd}
)

func ethernet(src []byte, ethertype uint16, payload ...byte) frame {
	f := append(frame{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src...)
	f = append(f, byte(ethertype>>8), byte(ethertype))
	return append(append(f, payload...), make([]byte, 64)...)
}

// ip4 is an IPv4 packet with words of header, a fragment field and two ports.
func ip4(src string, proto byte, words int, fragment uint16, sport, dport uint16) []byte {
	b := make([]byte, 4*words)
	b[0] = 0x40 | byte(words)
	b[6], b[7] = byte(fragment>>8), byte(fragment)
	b[9] = proto
	a := netip.MustParseAddr(src).As4()
	copy(b[12:], a[:])
	return append(b, byte(sport>>8), byte(sport), byte(dport>>8), byte(dport))
}

func ip6(src string, next byte, transport ...byte) []byte {
	b := make([]byte, 40)
	b[0], b[6] = 0x60, next
	a := netip.MustParseAddr(src).As16()
	copy(b[8:], a[:])
	return append(b, transport...)
}

func arp(sha []byte, spa string) []byte {
	a := netip.MustParseAddr(spa).As4()
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, sha...)
	return append(append(b, a[:]...), 0, 0, 0, 0, 0, 0, 10, 1, 2, 1)
}

func TestFromGuest(t *testing.T) {
	const v4, v6, a = 0x0800, 0x86dd, 0x0806
	for _, c := range []struct {
		name          string
		f             frame
		want, trusted Target
	}{
		{"own TCP", ethernet(own, v4, ip4("10.1.2.3", 6, 5, 0, 1, 80)...), ToPeer, ToPeer},
		{"TCP to port 67", ethernet(own, v4, ip4("10.1.2.3", 6, 5, 0, 1, 67)...), ToPeer, ToPeer},
		{"foreign MAC", ethernet(foreign, v4, ip4("10.1.2.3", 6, 5, 0, 1, 80)...), ToSink, ToPeer},
		{"foreign IP", ethernet(own, v4, ip4("10.1.2.4", 6, 5, 0, 1, 80)...), ToSink, ToPeer},
		{"discover", ethernet(own, v4, ip4("0.0.0.0", 17, 5, 0, 68, 67)...), ToLocal, ToLocal},
		{"renewal", ethernet(own, v4, ip4("10.1.2.3", 17, 5, 0, 68, 67)...), ToLocal, ToLocal},
		{"discover of another MAC", ethernet(foreign, v4, ip4("0.0.0.0", 17, 5, 0, 68, 67)...), ToSink, ToSink},
		{"offer by the guest", ethernet(own, v4, ip4("10.1.2.3", 17, 5, 0, 67, 68)...), ToSink, ToSink},
		{"offer behind IP options", ethernet(own, v4, ip4("10.1.2.3", 17, 6, 0, 67, 68)...), ToSink, ToSink},
		{"offer behind many IP options", ethernet(own, v4, ip4("10.1.2.3", 17, 15, 0, 67, 68)...), ToSink, ToSink},
		{"TCP behind IP options", ethernet(own, v4, ip4("10.1.2.3", 6, 6, 0, 1, 80)...), ToPeer, ToPeer},
		{"later fragment that looks like DHCP", ethernet(own, v4, ip4("10.1.2.3", 17, 5, 0x00b9, 68, 67)...), ToPeer, ToPeer},
		{"first fragment of an offer", ethernet(own, v4, ip4("10.1.2.3", 17, 5, 0x2000, 67, 68)...), ToSink, ToSink},
		{"DNS", ethernet(own, v4, ip4("10.1.2.3", 17, 5, 0, 5353, 53)...), ToPeer, ToPeer},
		{"own ARP", ethernet(own, a, arp(own, "10.1.2.3")...), ToPeer, ToPeer},
		{"ARP probe", ethernet(own, a, arp(own, "0.0.0.0")...), ToPeer, ToPeer},
		{"ARP for another", ethernet(own, a, arp(own, "10.1.2.1")...), ToSink, ToPeer},
		{"ARP with another MAC inside", ethernet(own, a, arp(foreign, "10.1.2.3")...), ToSink, ToPeer},
		{"ARP from another MAC", ethernet(foreign, a, arp(own, "10.1.2.3")...), ToSink, ToPeer},
		{"own IPv6", ethernet(own, v6, ip6("fd00:1::5", 6, 0, 1, 0, 80)...), ToPeer, ToPeer},
		{"foreign IPv6", ethernet(own, v6, ip6("fd00:1::6", 6, 0, 1, 0, 80)...), ToSink, ToPeer},
		{"foreign MAC, IPv6", ethernet(foreign, v6, ip6("fd00:1::5", 6, 0, 1, 0, 80)...), ToSink, ToPeer},
		{"neighbour solicitation", ethernet(own, v6, ip6("fe80::1234", 58, 135)...), ToPeer, ToPeer},
		{"duplicate address detection", ethernet(own, v6, ip6("::", 58, 135)...), ToPeer, ToPeer},
		{"router advertisement", ethernet(own, v6, ip6("fe80::1234", 58, 134)...), ToSink, ToPeer},
		{"DHCPv6 answer", ethernet(own, v6, ip6("fe80::1234", 17, 0x02, 0x23, 0x02, 0x22)...), ToSink, ToPeer},
		{"another protocol", ethernet(own, 0x88cc, 1, 2, 3), ToSink, ToPeer},
		{"VLAN", ethernet(own, 0x8100, 0, 5, 8, 0), ToSink, ToPeer},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := testGuest()
			if got, why := verdict(TapRules(g), c.f); got != c.want {
				t.Errorf("guarded: got %s (%s), want %s", got, why, c.want)
			}
			g.AllowSpoofing = true
			if got, why := verdict(TapRules(g), c.f); got != c.trusted {
				t.Errorf("spoofing allowed: got %s (%s), want %s", got, why, c.trusted)
			}
		})
	}
}

func TestFromNetwork(t *testing.T) {
	const v4, v6 = 0x0800, 0x86dd
	for _, c := range []struct {
		name          string
		f             frame
		want, trusted Target
	}{
		{"TCP", ethernet(foreign, v4, ip4("10.1.2.9", 6, 5, 0, 1, 80)...), ToPeer, ToPeer},
		{"ARP", ethernet(foreign, 0x0806, arp(foreign, "10.1.2.1")...), ToPeer, ToPeer},
		{"discover of another pod", ethernet(foreign, v4, ip4("0.0.0.0", 17, 5, 0, 68, 67)...), ToSink, ToSink},
		{"offer of another pod", ethernet(foreign, v4, ip4("10.1.2.9", 17, 5, 0, 67, 68)...), ToSink, ToSink},
		{"offer behind IP options", ethernet(foreign, v4, ip4("10.1.2.9", 17, 7, 0, 67, 68)...), ToSink, ToSink},
		{"router advertisement", ethernet(foreign, v6, ip6("fe80::9", 58, 134)...), ToSink, ToPeer},
		{"neighbour advertisement", ethernet(foreign, v6, ip6("fe80::9", 58, 136)...), ToPeer, ToPeer},
		{"DHCPv6 answer", ethernet(foreign, v6, ip6("fe80::9", 17, 0x02, 0x23, 0x02, 0x22)...), ToSink, ToPeer},
		{"another protocol", ethernet(foreign, 0x88cc, 1), ToPeer, ToPeer},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := testGuest()
			if got, why := verdict(InterfaceRules(g), c.f); got != c.want {
				t.Errorf("guarded: got %s (%s), want %s", got, why, c.want)
			}
			g.AllowSpoofing = true
			if got, why := verdict(InterfaceRules(g), c.f); got != c.trusted {
				t.Errorf("spoofing allowed: got %s (%s), want %s", got, why, c.trusted)
			}
		})
	}
}
