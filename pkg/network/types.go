package network

import (
	"net/netip"
)

// Pod is what CNI plugins and the guest's DHCP server are told about a sandbox.
type Pod struct {
	SandboxID string // CNI container ID; letters, digits, '_', '.', '-'
	Name      string // Kubernetes pod name
	Namespace string // Kubernetes namespace
	UID       string // Kubernetes pod UID
	Hostname  string // told to the guest by DHCP; may be empty

	CgroupParent string // for the CNI capability cgroupPath
	Labels       map[string]string
	Annotations  map[string]string // for the CNI capability io.kubernetes.cri.pod-annotations
	PortMappings []PortMapping     // those with a host port reach the capability portMappings
	DNS          DNS               // of the pod; where it names no server, CNI's is used

	IngressBandwidth int64 // towards the pod, bit/s, 0 is unlimited
	EgressBandwidth  int64 // from the pod, bit/s, 0 is unlimited

	// AllowSpoofing lets the guest send from other MAC and IP addresses than
	// its own, as a router or a VRRP peer must.
	AllowSpoofing bool
}

// PortMapping publishes a port of the pod on the node.
type PortMapping struct {
	HostPort      int32 // 0 publishes nothing
	ContainerPort int32
	Protocol      string // tcp, udp or sctp, in any case
	HostIP        string // empty is any
}

// DNS is a resolver configuration, as in resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Result is the network that a sandbox got. It is stored by the caller and given
// back to Connect and OpenTaps, also after a restart.
type Result struct {
	NetNS         string      `json:"netns"`      // path of the namespace's file
	Interfaces    []Interface `json:"interfaces"` // eth0 first; one guest NIC each, in this order
	Routes        []Route     `json:"routes,omitempty"`
	DNS           DNS         `json:"dns"`
	Hostname      string      `json:"hostname,omitempty"`
	AllowSpoofing bool        `json:"allowSpoofing,omitempty"`

	// Queues is how many each tap shall have, for Connect and OpenTaps; 0 is 1. It
	// follows from the guest and not from CNI, and is not stored.
	Queues int `json:"-"`
}

// Interface is one interface of the sandbox, as the guest shall configure it.
type Interface struct {
	Name string `json:"name"` // in the namespace: eth0, net1 …
	MAC  string `json:"mac"`  // the guest's NIC gets the same
	MTU  int    `json:"mtu"`
	// Addresses carry the prefix that is on the link. It is /32 or /128 where
	// the CNI plugin wants even neighbours to be reached through the gateway.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateways are the next hops that the plugin named, those of default
	// routes first. Routes say what is to be sent there.
	Gateways []netip.Addr `json:"gateways,omitempty"`
}

// Route is a route of the sandbox beyond those that the addresses imply. Routes
// are ordered so that a gateway's own route comes before its first use.
type Route struct {
	Interface   string       `json:"interface"`
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"` // not valid: on the link
	Metric      int          `json:"metric,omitempty"`
}

// IsDefault tells whether the route takes all traffic of its family.
func (r Route) IsDefault() bool { return r.Destination.Bits() == 0 }
