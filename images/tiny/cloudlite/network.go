package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// networkConfig is network-config version 2, as far as a plain Ethernet guest
// needs it.
type networkConfig struct {
	Version   int                 `yaml:"version"`
	Ethernets map[string]ethernet `yaml:"ethernets"`
}

type ethernet struct {
	Match struct {
		MACAddress string `yaml:"macaddress"`
		Name       string `yaml:"name"`
	} `yaml:"match"`
	SetName     string   `yaml:"set-name"`
	DHCP4       bool     `yaml:"dhcp4"`
	AcceptRA    *bool    `yaml:"accept-ra"`
	Addresses   []string `yaml:"addresses"`
	Gateway4    string   `yaml:"gateway4"`
	Gateway6    string   `yaml:"gateway6"`
	MTU         int      `yaml:"mtu"`
	Routes      []route  `yaml:"routes"`
	Nameservers struct {
		Search    []string `yaml:"search"`
		Addresses []string `yaml:"addresses"`
	} `yaml:"nameservers"`
}

type route struct {
	To     string `yaml:"to"`
	Via    string `yaml:"via"`
	OnLink bool   `yaml:"on-link"`
	Metric int    `yaml:"metric"`
}

// card is a network card that the guest has.
type card struct {
	name, mac string
}

// plan is what to do about the network, in order.
type plan struct {
	commands   []command
	dhcp       []string // interfaces that DHCP configures
	resolvConf string   // "" leaves the file to DHCP
	summary    []string // lines for the console
}

func parseNetworkConfig(data []byte) (networkConfig, error) {
	// The top-level "network" key is optional.
	var document struct {
		Network       *networkConfig `yaml:"network"`
		networkConfig `yaml:",inline"`
	}
	if err := yaml.Unmarshal(data, &document); err != nil {
		return networkConfig{}, fmt.Errorf("network-config: %w", err)
	}
	config := document.networkConfig
	if document.Network != nil {
		config = *document.Network
	}
	if config.Version != 2 {
		return networkConfig{}, fmt.Errorf("network-config version %d is not understood, only 2 is", config.Version)
	}
	return config, nil
}

// cards lists the network cards; virtual interfaces have no device behind them.
func cards(sysClassNet string) ([]card, error) {
	entries, err := os.ReadDir(sysClassNet)
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	var found []card
	for _, entry := range entries {
		dir := filepath.Join(sysClassNet, entry.Name())
		if _, err := os.Stat(filepath.Join(dir, "device")); err != nil {
			continue
		}
		mac, err := os.ReadFile(filepath.Join(dir, "address"))
		if err != nil {
			return nil, fmt.Errorf("read address of %s: %w", entry.Name(), err)
		}
		found = append(found, card{name: entry.Name(), mac: strings.TrimSpace(string(mac))})
	}
	return found, nil
}

// planNetwork decides on every card; a card that the configuration does not
// mention stays down, as with cloud-init.
func planNetwork(config networkConfig, present []card) (plan, error) {
	var p plan
	var search, servers []string
	for _, id := range slices.Sorted(maps.Keys(config.Ethernets)) {
		e := config.Ethernets[id]
		at := slices.IndexFunc(present, func(c card) bool { return e.matches(id, c) })
		if at < 0 {
			return plan{}, fmt.Errorf("network-config: no network card matches %q", id)
		}
		if err := p.addEthernet(e, present[at].name); err != nil {
			return plan{}, fmt.Errorf("network-config: %s: %w", id, err)
		}
		search = append(search, e.Nameservers.Search...)
		servers = append(servers, e.Nameservers.Addresses...)
	}
	p.resolvConf = resolvConf(search, servers)
	return p, nil
}

func (e ethernet) matches(id string, c card) bool {
	if e.Match.MACAddress != "" {
		return strings.EqualFold(e.Match.MACAddress, c.mac)
	}
	return c.name == cmp.Or(e.Match.Name, id)
}

func (p *plan) addEthernet(e ethernet, name string) error {
	run := func(format string, args ...any) {
		p.commands = append(p.commands, strings.Fields(fmt.Sprintf(format, args...)))
	}
	if e.SetName != "" && e.SetName != name {
		run("ip link set dev %s down", name)
		run("ip link set dev %s name %s", name, e.SetName)
		name = e.SetName
	}
	if e.MTU != 0 {
		run("ip link set dev %s mtu %d", name, e.MTU)
	}
	if e.AcceptRA != nil && !*e.AcceptRA {
		run("sysctl -q -w net/ipv6/conf/%s/accept_ra=0", name)
	}
	// Duplicate address detection would leave an IPv6 address unusable for a
	// second; the pod network hands each out once.
	run("sysctl -q -w net/ipv6/conf/%s/accept_dad=0", name)
	run("ip link set dev %s up", name)
	for _, address := range e.Addresses {
		if _, err := netip.ParsePrefix(address); err != nil {
			return err
		}
		run("ip addr add %s dev %s", address, name)
	}
	for _, r := range e.allRoutes() {
		// busybox ip has no onlink: a route to the gateway itself does the same.
		if r.OnLink {
			run("ip route replace %s dev %s", r.Via, name)
		}
		run("ip route replace %s%s", r.target(name), r.suffix())
	}
	if e.DHCP4 {
		p.dhcp = append(p.dhcp, name)
	} else {
		p.summary = append(p.summary, fmt.Sprintf("%s has %s (static)", name, strings.Join(e.Addresses, ", ")))
	}
	return nil
}

func (e ethernet) allRoutes() []route {
	routes := slices.Clone(e.Routes)
	for _, gateway := range []string{e.Gateway4, e.Gateway6} {
		if gateway != "" {
			routes = append(routes, route{To: "default", Via: gateway})
		}
	}
	return routes
}

func (r route) target(name string) string {
	if r.Via == "" {
		return r.To + " dev " + name
	}
	return r.To + " via " + r.Via + " dev " + name
}

func (r route) suffix() string {
	if r.Metric == 0 {
		return ""
	}
	return " metric " + strconv.Itoa(r.Metric)
}

func resolvConf(search, servers []string) string {
	var b strings.Builder
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, server := range servers {
		b.WriteString("nameserver " + server + "\n")
	}
	return b.String()
}

func (r resolver) text() string {
	var b strings.Builder
	b.WriteString(resolvConf(r.Search, r.Servers))
	for _, name := range slices.Sorted(maps.Keys(r.Options)) {
		if value := r.Options[name]; value == true {
			fmt.Fprintf(&b, "options %s\n", name)
		} else {
			fmt.Fprintf(&b, "options %s:%v\n", name, value)
		}
	}
	return b.String()
}
