package cloudinit

import "net/netip"

// The document that cloud-init calls "Networking config version 1".
type networkDocumentV1 struct {
	Version int          `yaml:"version"`
	Config  []physicalV1 `yaml:"config"`
}

type physicalV1 struct {
	Type    string     `yaml:"type"`
	Name    string     `yaml:"name"`
	MAC     string     `yaml:"mac_address"`
	MTU     int        `yaml:"mtu,omitempty"`
	Subnets []subnetV1 `yaml:"subnets,omitempty"`
}

type subnetV1 struct {
	Type       string       `yaml:"type"`
	Address    string       `yaml:"address,omitempty"`
	Gateway    string       `yaml:"gateway,omitempty"`
	DNSServers []netip.Addr `yaml:"dns_nameservers,omitempty"`
	DNSSearch  []string     `yaml:"dns_search,omitempty"`
	Routes     []routeV1    `yaml:"routes,omitempty"`
}

type routeV1 struct {
	Network string `yaml:"network"`
	Netmask string `yaml:"netmask"`
	Gateway string `yaml:"gateway"`
}

// v1 renders network-config version 1. It cannot say metrics, nor routes to gateways
// outside of the interface's subnets; the latter are errdefs.ErrNotImplemented.
func (n *NetworkConfig) v1() ([]byte, error) {
	doc := networkDocumentV1{Version: 1, Config: []physicalV1{}}
	for _, i := range n.Interfaces {
		card, err := i.v1()
		if err != nil {
			return nil, err
		}
		doc.Config = append(doc.Config, card)
	}
	return marshalYAML(doc)
}

func (i Interface) v1() (physicalV1, error) {
	card := physicalV1{Type: "physical", Name: i.Name, MAC: i.MAC.String(), MTU: i.MTU}
	if i.DHCP4 {
		card.Subnets = append(card.Subnets, subnetV1{Type: "dhcp4"})
	}
	if i.DHCP6 {
		card.Subnets = append(card.Subnets, subnetV1{Type: "dhcp6"})
	}
	routed := map[string]bool{}
	for _, a := range i.Addresses {
		subnet := subnetV1{Type: "static6", Address: a.String()}
		if a.Addr().Is4() {
			subnet.Type = "static"
		}
		if !routed[subnet.Type] {
			routed[subnet.Type] = true
			routes, err := i.plainRoutes(a.Addr().Is4())
			if err != nil {
				return card, err
			}
			subnet.route(routes)
		}
		card.Subnets = append(card.Subnets, subnet)
	}
	if len(card.Subnets) > 0 {
		card.Subnets[0].DNSServers, card.Subnets[0].DNSSearch = i.DNS.Servers, i.DNS.Search
	}
	return card, nil
}

// route adds routes; the first default one is the subnet's gateway.
func (s *subnetV1) route(routes []Route) {
	for _, r := range routes {
		if s.Gateway == "" && r.To.Bits() == 0 {
			s.Gateway = r.Via.String()
			continue
		}
		s.Routes = append(s.Routes, routeV1{Network: r.To.Masked().Addr().String(), Netmask: netmask(r.To), Gateway: r.Via.String()})
	}
}
