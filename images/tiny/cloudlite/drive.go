package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"go.yaml.in/yaml/v3"
)

// readDrive reads OpenStack's config drive and says the same as a NoCloud seed.
func readDrive(dir fs.FS) (seed, error) {
	var s seed
	var metaData, vendorData, networkData []byte
	const latest = "openstack/latest/"
	err := readFiles(dir, map[string]*[]byte{
		latest + "meta_data.json": &metaData, latest + "user_data": &s.userData,
		latest + "vendor_data.json": &vendorData, latest + "network_data.json": &networkData,
	})
	if err != nil {
		return seed{}, err
	}
	if s.metaData, err = driveMetaData(metaData); err != nil {
		return seed{}, fmt.Errorf("meta_data.json: %w", err)
	}
	if s.vendorData, err = driveVendorData(vendorData); err != nil {
		return seed{}, fmt.Errorf("vendor_data.json: %w", err)
	}
	if s.networkConfig, err = driveNetwork(networkData); err != nil {
		return seed{}, fmt.Errorf("network_data.json: %w", err)
	}
	return s, nil
}

func driveMetaData(text []byte) ([]byte, error) {
	var data struct {
		UUID       string         `json:"uuid"`
		Hostname   string         `json:"hostname"`
		PublicKeys map[string]any `json:"public_keys"`
	}
	if err := json.Unmarshal(text, &data); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"instance-id": data.UUID, "local-hostname": data.Hostname, "public-keys": data.PublicKeys,
	})
}

func driveVendorData(text []byte) ([]byte, error) {
	if text == nil {
		return nil, nil
	}
	var data struct {
		CloudInit string `json:"cloud-init"`
	}
	err := json.Unmarshal(text, &data)
	return []byte(data.CloudInit), err
}

// networkData is network_data.json as far as this guest understands it.
type networkData struct {
	Links []struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		MAC  string `json:"ethernet_mac_address"`
		MTU  int    `json:"mtu"`
	} `json:"links"`
	Networks []driveSubnet `json:"networks"`
	Services []struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	} `json:"services"`
}

type driveSubnet struct {
	Link    string `json:"link"`
	Type    string `json:"type"`
	Address string `json:"ip_address"`
	Netmask string `json:"netmask"`
	Routes  []struct {
		Network string `json:"network"`
		Netmask string `json:"netmask"`
		Gateway string `json:"gateway"`
	} `json:"routes"`
	DNSSearch []string `json:"dns_search"`
}

// driveNetwork translates network_data.json into network-config version 2.
func driveNetwork(text []byte) ([]byte, error) {
	if text == nil {
		return nil, nil
	}
	var data networkData
	if err := json.Unmarshal(text, &data); err != nil {
		return nil, err
	}
	config := networkConfig{Version: 2, Ethernets: map[string]ethernet{}}
	for n, link := range data.Links {
		e := ethernet{SetName: link.Name, MTU: link.MTU}
		e.Match.MACAddress = link.MAC
		for _, subnet := range data.Networks {
			if subnet.Link != link.ID {
				continue
			}
			if err := e.addSubnet(subnet); err != nil {
				return nil, fmt.Errorf("link %s: %w", link.ID, err)
			}
		}
		for _, service := range data.Services {
			if n == 0 && service.Type == "dns" {
				e.Nameservers.Addresses = append(e.Nameservers.Addresses, service.Address)
			}
		}
		config.Ethernets[link.ID] = e
	}
	return yaml.Marshal(config)
}

func (e *ethernet) addSubnet(s driveSubnet) error {
	switch s.Type {
	case "ipv4_dhcp":
		e.DHCP4 = true
	case "ipv6_dhcp": // from router advertisements, if at all
	case "ipv4", "ipv6":
		address, err := withLength(s.Address, s.Netmask)
		if err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, address)
	default:
		return fmt.Errorf("network type %q is not understood", s.Type)
	}
	for _, r := range s.Routes {
		to, err := withLength(r.Network, r.Netmask)
		if err != nil {
			return err
		}
		e.Routes = append(e.Routes, route{To: to, Via: r.Gateway})
	}
	e.Nameservers.Search = append(e.Nameservers.Search, s.DNSSearch...)
	return nil
}

// withLength writes an address and its netmask as address/length.
func withLength(address, mask string) (string, error) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "", err
	}
	m, err := netip.ParseAddr(mask)
	if err != nil {
		return "", err
	}
	length, bits := net.IPMask(m.AsSlice()).Size()
	if bits != a.BitLen() {
		return "", fmt.Errorf("%s is no netmask for %s", mask, address)
	}
	return netip.PrefixFrom(a, length).String(), nil
}
