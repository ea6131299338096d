package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	etherHeaderLen = 14
	ipHeaderLen    = 20 // without options; the redirect lets no others through
	udpHeaderLen   = 8

	serverPort = 67
	clientPort = 68
)

var (
	broadcastMAC     = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// datagram is UDP over IPv4 over Ethernet.
type datagram struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       netip.Addr
	payload        []byte
}

// parse reads a datagram to the server's port. Checksums are not looked at: the
// guest may leave them to its network card, which has not computed them.
func parse(frame []byte) (datagram, error) {
	if len(frame) < etherHeaderLen+ipHeaderLen+udpHeaderLen {
		return datagram{}, fmt.Errorf("%w: frame of %d bytes is too short", errIgnored, len(frame))
	}
	d := datagram{dstMAC: frame[0:6], srcMAC: frame[6:12]}
	ip := frame[etherHeaderLen:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP || ip[0] != 0x45 || ip[9] != unix.IPPROTO_UDP:
		return datagram{}, fmt.Errorf("%w: not UDP over IPv4 without options", errIgnored)
	case binary.BigEndian.Uint16(ip[6:])&0x3fff != 0:
		return datagram{}, fmt.Errorf("%w: a fragment", errIgnored)
	case total < ipHeaderLen+udpHeaderLen || total > len(ip):
		return datagram{}, fmt.Errorf("%w: IP length %d in a frame of %d bytes", errIgnored, total, len(frame))
	}
	d.src, d.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	udp := ip[ipHeaderLen:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	switch {
	case binary.BigEndian.Uint16(udp[2:]) != serverPort:
		return datagram{}, fmt.Errorf("%w: not to port %d", errIgnored, serverPort)
	case length < udpHeaderLen || length > len(udp):
		return datagram{}, fmt.Errorf("%w: UDP length %d of %d", errIgnored, length, len(udp))
	}
	d.payload = udp[udpHeaderLen:length]
	return d, nil
}

// marshal writes a datagram from the server's port to the client's.
func (d datagram) marshal() []byte {
	udpLen := uint16(udpHeaderLen + len(d.payload)) //nolint:gosec // the payload is a DHCP message, fitted to the MTU
	b := make([]byte, 0, etherHeaderLen+ipHeaderLen+udpHeaderLen+len(d.payload))
	b = append(b, d.dstMAC...)
	b = append(b, d.srcMAC...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)

	src, dst := d.src.As4(), d.dst.As4()
	ip := len(b)
	b = append(b, 0x45, 0x10) // no options; low delay
	b = binary.BigEndian.AppendUint16(b, ipHeaderLen+udpLen)
	b = append(b, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0) // no fragment, TTL 64
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	binary.BigEndian.PutUint16(b[ip+10:], ^sum(b[ip:], 0))

	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, serverPort)
	b = binary.BigEndian.AppendUint16(b, clientPort)
	b = binary.BigEndian.AppendUint16(b, udpLen)
	b = append(b, 0, 0)
	b = append(b, d.payload...)
	pseudo := sum(b[ip+12:ip+20], uint32(unix.IPPROTO_UDP)+uint32(udpLen))
	checksum := ^sum(b[udp:], uint32(pseudo))
	if checksum == 0 { // which means "none" on the wire
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(b[udp+6:], checksum)
	return b
}

// sum is the one's complement sum of RFC 1071, added to start.
func sum(b []byte, start uint32) uint16 {
	total := start
	for ; len(b) >= 2; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
