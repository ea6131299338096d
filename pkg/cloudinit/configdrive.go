package cloudinit

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/containerd/errdefs"
)

// LabelConfigDrive is the volume label by which a guest finds a config drive.
const LabelConfigDrive = "config-2"

// configDriveDir is where the newest version of the documents is.
const configDriveDir = "openstack/latest/"

// ConfigDrive renders the documents of OpenStack's config drive, version 2, which
// cloudbase-init of Windows guests reads too: meta_data.json and user_data, plus
// network_data.json and vendor_data.json where there is something to say. A Config
// that a guest could not use yields ErrInvalidArgument; a network that these
// documents cannot describe yields ErrNotImplemented. Metrics of routes and the
// names that cards shall have are hints to cloud-init alone.
func ConfigDrive(c Config) (Files, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	metaData, err := c.driveMetaData()
	if err != nil {
		return nil, err
	}
	userData, vendorData, err := c.userAndVendorData()
	if err != nil {
		return nil, err
	}
	files := Files{configDriveDir + "meta_data.json": metaData, configDriveDir + "user_data": userData}
	if vendorData != nil {
		document, err := marshalJSON(map[string]string{"cloud-init": string(vendorData)})
		if err != nil {
			return nil, err
		}
		files[configDriveDir+"vendor_data.json"] = document
	}
	if c.Network != nil {
		document, err := c.Network.networkData()
		if err != nil {
			return nil, err
		}
		if files[configDriveDir+"network_data.json"], err = marshalJSON(document); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// driveMetaData names the instance by "uuid", which need not be one.
func (c Config) driveMetaData() ([]byte, error) {
	data := map[string]any{
		"uuid":     c.InstanceID,
		"hostname": c.Hostname,
		"name":     c.Hostname,
	}
	if len(c.SSHKeys) > 0 {
		data["public_keys"] = numbered(c.SSHKeys)
	}
	for key, value := range c.MetaData {
		if own, ok := driveKeys[key]; ok {
			key = own
		}
		if list, ok := value.([]any); ok && key == "public_keys" {
			value = numbered(list)
		}
		data[key] = value
	}
	return marshalJSON(data)
}

// driveKeys are what NoCloud's keys are called in a config drive.
var driveKeys = map[string]string{
	"instance-id": "uuid", "local-hostname": "hostname", "public-keys": "public_keys",
}

func numbered[T any](list []T) map[string]T {
	m := make(map[string]T, len(list))
	for n, value := range list {
		m[strconv.Itoa(n)] = value
	}
	return m
}

// networkData is network_data.json, in OpenStack's schema of 2018. Extensions that
// cloud-init understands are name, dns_nameservers and dns_search: it gives the
// resolvers in services only to interfaces that have no search list.
type networkData struct {
	Links    []driveLink    `json:"links"`
	Networks []driveNetwork `json:"networks"`
	Services []driveService `json:"services"`
}

type driveLink struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Type string `json:"type"`
	MAC  string `json:"ethernet_mac_address"`
	MTU  int    `json:"mtu,omitempty"`
}

type driveNetwork struct {
	ID         string       `json:"id"`
	Link       string       `json:"link"`
	Type       string       `json:"type"`
	Address    string       `json:"ip_address,omitempty"`
	Netmask    string       `json:"netmask,omitempty"`
	Routes     []driveRoute `json:"routes,omitempty"`
	DNSServers []netip.Addr `json:"dns_nameservers,omitempty"`
	DNSSearch  []string     `json:"dns_search,omitempty"`
}

type driveRoute struct {
	Network string `json:"network"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
}

type driveService struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

func (n *NetworkConfig) networkData() (networkData, error) {
	data := networkData{Links: []driveLink{}, Networks: []driveNetwork{}, Services: []driveService{}}
	for _, i := range n.Interfaces {
		data.Links = append(data.Links, driveLink{ID: i.Name, Name: i.Name, Type: "phy", MAC: i.MAC.String(), MTU: i.MTU})
		networks, err := i.driveNetworks()
		if err != nil {
			return networkData{}, err
		}
		data.Networks = append(data.Networks, networks...)
		for _, server := range i.DNS.Servers {
			data.Services = append(data.Services, driveService{Type: "dns", Address: server.String()})
		}
	}
	return data, nil
}

// driveNetworks has one network for each address. Routes belong to the first one
// of their family.
func (i Interface) driveNetworks() ([]driveNetwork, error) {
	var networks []driveNetwork
	add := func(n driveNetwork) *driveNetwork {
		n.ID, n.Link = fmt.Sprintf("%s-%d", i.Name, len(networks)), i.Name
		networks = append(networks, n)
		return &networks[len(networks)-1]
	}
	if i.DHCP4 {
		add(driveNetwork{Type: "ipv4_dhcp"})
	}
	if i.DHCP6 {
		add(driveNetwork{Type: "ipv6_dhcp"})
	}
	routed := map[string]bool{}
	for _, a := range i.Addresses {
		family := "ipv6"
		if a.Addr().Is4() {
			family = "ipv4"
		}
		network := add(driveNetwork{Type: family, Address: a.Addr().String(), Netmask: netmask(a)})
		if routed[family] {
			continue
		}
		routed[family] = true
		routes, err := i.plainRoutes(a.Addr().Is4())
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			network.Routes = append(network.Routes, driveRoute{Network: r.To.Masked().Addr().String(), Netmask: netmask(r.To), Gateway: r.Via.String()})
		}
	}
	if len(networks) > 0 {
		networks[0].DNSServers, networks[0].DNSSearch = i.DNS.Servers, i.DNS.Search
	}
	return networks, nil
}

// plainRoutes are the routes of a family for formats that know nothing but gateways
// in the interface's subnets.
func (i Interface) plainRoutes(ipv4 bool) ([]Route, error) {
	var routes []Route
	for _, r := range i.Routes {
		if r.To.Addr().Is4() != ipv4 || i.leadsToGateway(r) {
			continue
		}
		if !r.Via.IsValid() || !i.reaches(r.Via) {
			return nil, fmt.Errorf("cloud-init: interface %s: neither a config drive nor network-config version 1 can describe the route to %s, "+
				"whose gateway is not in the interface's subnet; use NoCloud with version 2, or DHCP: %w", i.Name, r.To, errdefs.ErrNotImplemented)
		}
		routes = append(routes, r)
	}
	return routes, nil
}

// netmask writes a prefix length the way of addresses: 255.255.255.0 or ffff::.
func netmask(p netip.Prefix) string {
	mask, ok := netip.AddrFromSlice(net.CIDRMask(p.Bits(), p.Addr().BitLen()))
	if !ok {
		return "" // not for a valid prefix
	}
	return mask.String()
}
