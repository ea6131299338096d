package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// errIgnored is the base of the reasons for not answering a frame.
var errIgnored = errors.New("not answered")

const (
	// minMessage is what every client must take, IP and UDP headers included.
	minMessage = 576
	// defaultMTU bounds answers where the configuration names no MTU.
	defaultMTU = 1500
)

// answer returns the frame that answers a guest's frame, or an error that wraps
// errIgnored and says why there is none. from is the server's MAC.
func (c Config) answer(from net.HardwareAddr, in []byte) ([]byte, error) {
	request, err := c.request(in)
	if err != nil {
		return nil, err
	}
	kind, err := c.decide(request)
	if err != nil {
		return nil, err
	}
	reply, err := c.reply(request, kind)
	if err != nil {
		return nil, err
	}
	out := datagram{
		srcMAC: from, dstMAC: c.MAC,
		src: c.ServerID(), dst: c.Address.Addr(),
		payload: reply.ToBytes(),
	}
	if kind == dhcpv4.MessageTypeNak || request.IsBroadcast() && request.ClientIPAddr.IsUnspecified() {
		out.dstMAC, out.dst = broadcastMAC, limitedBroadcast
	}
	frame := out.marshal()
	if len(frame)-etherHeaderLen > c.mtu() {
		return nil, fmt.Errorf("%w: what is to be echoed exceeds the MTU", errIgnored)
	}
	return frame, nil
}

// request parses what the guest sent and refuses what others sent.
func (c Config) request(in []byte) (*dhcpv4.DHCPv4, error) {
	d, err := parse(in)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(d.srcMAC, c.MAC) {
		return nil, fmt.Errorf("%w: frame of %s, not of the guest", errIgnored, d.srcMAC)
	}
	r, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIgnored, err)
	}
	switch {
	case r.OpCode != dhcpv4.OpcodeBootRequest:
		return nil, fmt.Errorf("%w: a reply", errIgnored)
	case r.HWType != iana.HWTypeEthernet || !bytes.Equal(r.ClientHWAddr, c.MAC):
		return nil, fmt.Errorf("%w: request for hardware address %s, not the guest's", errIgnored, r.ClientHWAddr)
	case !r.GatewayIPAddr.IsUnspecified():
		return nil, fmt.Errorf("%w: relayed", errIgnored)
	}
	return r, nil
}

// decide chooses the answer's type (RFC 2131, 4.3).
func (c Config) decide(r *dhcpv4.DHCPv4) (dhcpv4.MessageType, error) {
	switch t := r.MessageType(); t {
	case dhcpv4.MessageTypeDiscover:
		return dhcpv4.MessageTypeOffer, nil
	case dhcpv4.MessageTypeInform:
		return dhcpv4.MessageTypeAck, nil
	case dhcpv4.MessageTypeRequest:
		return c.decideRequest(r)
	default:
		return 0, fmt.Errorf("%w: message of type %s", errIgnored, t)
	}
}

// decideRequest grants the pod's own address and no other. A request that names
// another server declines our offer.
func (c Config) decideRequest(r *dhcpv4.DHCPv4) (dhcpv4.MessageType, error) {
	if id := r.ServerIdentifier(); id != nil && !equal(id, c.ServerID()) {
		return 0, fmt.Errorf("%w: request to server %s", errIgnored, id)
	}
	wanted := r.RequestedIPAddress()
	if wanted == nil {
		wanted = r.ClientIPAddr
	}
	if !equal(wanted, c.Address.Addr()) {
		return dhcpv4.MessageTypeNak, nil
	}
	return dhcpv4.MessageTypeAck, nil
}

func equal(ip net.IP, a netip.Addr) bool { return ip.Equal(a.AsSlice()) }

func (c Config) reply(r *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	id := c.ServerID().AsSlice()
	reply, err := dhcpv4.NewReplyFromRequest(r,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(id)))
	if err != nil {
		return nil, fmt.Errorf("DHCP reply: %w", err)
	}
	if kind == dhcpv4.MessageTypeNak {
		reply.UpdateOption(dhcpv4.OptMessage("this pod's address is " + c.Address.Addr().String()))
		reply.SetBroadcast()
		return reply, nil
	}
	reply.ClientIPAddr = r.ClientIPAddr
	if r.MessageType() != dhcpv4.MessageTypeInform {
		c.grant(reply)
	}
	for _, o := range c.options() {
		if r.IsOptionRequested(o.Code) || o.Code == dhcpv4.OptionSubnetMask {
			reply.UpdateOption(o)
		}
	}
	c.fit(r, reply)
	return reply, nil
}

func (c Config) grant(reply *dhcpv4.DHCPv4) {
	reply.YourIPAddr = c.Address.Addr().AsSlice()
	reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
	reply.UpdateOption(dhcpv4.OptRenewTimeValue(renewTime))
	reply.UpdateOption(dhcpv4.OptRebindingTimeValue(rebindTime))
}

// fit leaves out what the guest can do without when the message gets longer
// than the guest takes.
func (c Config) fit(r, reply *dhcpv4.DHCPv4) {
	limit := minMessage
	if said, err := r.MaxMessageSize(); err == nil {
		limit = max(limit, int(said))
	}
	limit = min(limit, c.mtu()) - ipHeaderLen - udpHeaderLen
	for _, o := range []dhcpv4.OptionCode{dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionDomainName, dhcpv4.OptionBroadcastAddress} {
		if len(reply.ToBytes()) <= limit {
			return
		}
		reply.Options.Del(o)
	}
}

func (c Config) mtu() int {
	if c.MTU == 0 {
		return defaultMTU
	}
	return c.MTU
}
