package node

import (
	_ "embed" // kubelet.sh
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"

	"github.com/ambipod/ambipod/pkg/proxy"
)

//go:embed kubelet.sh
var kubeletScript []byte

// registryPort is where the container image registry listens in the namespace.
const registryPort = "5000"

// dirTranslations is where vmruntime finds short names of images, below etc.
const dirTranslations = "translations"

// streamPorts are where containerd and vmruntime serve exec and attach.
const containerdStreamPort = "10011"

func (n *Node) writeSettings() error {
	containerd, err := toml.Marshal(n.containerdSettings())
	if err != nil {
		return fmt.Errorf("write settings of containerd: %w", err)
	}
	hosts, err := toml.Marshal(registryHosts())
	if err != nil {
		return fmt.Errorf("write registry of containerd: %w", err)
	}
	translations, err := yaml.Marshal(n.translations())
	if err != nil {
		return fmt.Errorf("write image translations: %w", err)
	}
	proxy, err := yaml.Marshal(n.proxySettings())
	if err != nil {
		return fmt.Errorf("write settings of criproxy: %w", err)
	}
	for _, dir := range []string{filepath.Join("registries", registryHost), dirTranslations} {
		if err := os.MkdirAll(n.path(dirEtc, dir), 0o700); err != nil {
			return fmt.Errorf("make folder for settings: %w", err)
		}
	}
	return errors.Join(
		n.writeSetting("containerd.toml", containerd),
		n.writeSetting("registries/"+registryHost+"/hosts.toml", hosts),
		n.writeNetwork(),
		n.writeKubelet(),
		n.writeSetting(dirTranslations+"/images.yaml", translations),
		n.writeSetting("criproxy.yaml", proxy),
		n.writeSetting("kubelet.sh", kubeletScript),
		n.writeSetting("machine.sh", machineScript),
		n.writeCrictl(),
		n.writeVMCtl(),
		// Pods find no name server: nothing of this node leaves the machine.
		n.writeSetting("resolv.conf", []byte("search ambipod.test\n")),
	)
}

// translationFile gives disk images short names; docs/images.md has the format.
type translationFile struct {
	Translations []translation `json:"translations"`
}

type translation struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// translations let manifests say vm.ambipod.io/tiny, as examples/ do.
func (n *Node) translations() translationFile {
	name := strings.TrimSuffix(guestFile, filepath.Ext(guestFile))
	return translationFile{[]translation{{Name: name, URL: "http://127.0.0.1/" + guestFile}}}
}

// writeKubelet writes kubelet's configuration file.
func (n *Node) writeKubelet() error {
	settings, err := n.kubeletYAML()
	if err != nil {
		return fmt.Errorf("write settings of kubelet: %w", err)
	}
	return n.writeSetting("kubelet.yaml", settings)
}

// crictlConfig is crictl's configuration file.
type crictlConfig struct {
	RuntimeEndpoint string `json:"runtime-endpoint"`
	ImageEndpoint   string `json:"image-endpoint"`
	Timeout         int    `json:"timeout"` // seconds
}

// writeCrictl makes a crictl that needs no options. It runs in the node's network
// namespace, where the runtimes serve exec, attach and port-forward.
func (n *Node) writeCrictl() error {
	endpoint := "unix://" + n.CRISocket()
	settings, err := yaml.Marshal(crictlConfig{RuntimeEndpoint: endpoint, ImageEndpoint: endpoint, Timeout: 60})
	if err != nil {
		return fmt.Errorf("write settings of crictl: %w", err)
	}
	var script strings.Builder
	script.WriteString("#!/bin/sh\nexec")
	for _, word := range append(n.enter(), n.tool("crictl"), "--config", n.path(dirEtc, "crictl.yaml")) {
		script.WriteString(" " + quote(word))
	}
	script.WriteString(" \"$@\"\n")
	if err := os.WriteFile(n.Crictl(), []byte(script.String()), 0o700); err != nil { //nolint:gosec // a program
		return fmt.Errorf("write crictl of node: %w", err)
	}
	return n.writeSetting("crictl.yaml", settings)
}

// writeVMCtl makes a vmctl that needs no options. It runs in the node's network
// namespace, where vmruntime serves streams.
func (n *Node) writeVMCtl() error {
	var script strings.Builder
	script.WriteString("#!/bin/sh\nexec env")
	for _, word := range append([]string{
		"AMBIPOD_RUN_DIR=" + filepath.Dir(n.VMRuntimeSocket()), "AMBIPOD_STATE_DIR=" + n.VMStateDir(),
		"AMBIPOD_CRIPROXY_CONFIG=" + n.CRIProxyConfig(),
	}, append(n.enter(), n.built("vmctl"))...) {
		script.WriteString(" " + quote(word))
	}
	script.WriteString(" \"$@\"\n")
	if err := os.WriteFile(n.VMCtl(), []byte(script.String()), 0o700); err != nil { //nolint:gosec // a program
		return fmt.Errorf("write vmctl of node: %w", err)
	}
	return nil
}

func (n *Node) writeSetting(name string, data []byte) error {
	if err := os.WriteFile(n.path(dirEtc, name), data, 0o600); err != nil {
		return fmt.Errorf("write setting: %w", err)
	}
	return nil
}

// table is a section of containerd's settings, whose keys are plugin names.
type table = map[string]any

// containerdSettings keeps all of containerd inside the node's root. Rights that
// not every machine gives (raising limits, lowering the OOM score) are not used.
func (n *Node) containerdSettings() table {
	return table{
		"version": 3,
		"root":    n.path(dirContainerd, "root"),
		"state":   n.path(dirContainerd, "state"),
		"imports": []string{},
		"grpc":    table{"address": n.ContainerdSocket()},
		"ttrpc":   table{"address": n.ContainerdSocket() + ".ttrpc"},
		"disabled_plugins": []string{
			"io.containerd.nri.v1.nri",
			"io.containerd.snapshotter.v1.blockfile",
			"io.containerd.snapshotter.v1.btrfs",
			"io.containerd.snapshotter.v1.devmapper",
			"io.containerd.snapshotter.v1.erofs",
			"io.containerd.snapshotter.v1.zfs",
			"io.containerd.internal.v1.tracing",
		},
		"plugins": table{
			"io.containerd.cri.v1.runtime": table{
				"restrict_oom_score_adj":       true,
				"netns_mounts_under_state_dir": true,
				"enable_criu":                  false,
				"cdi_spec_dirs":                []string{n.path(dirEtc, "cdi")},
				"cni": table{
					"bin_dirs": []string{pluginsDir},
					"conf_dir": n.path(dirEtc, "cni"),
				},
				"containerd": table{"runtimes": table{"runc": table{
					"runtime_type": "io.containerd.runc.v2",
					"options": table{
						"BinaryName": runcPath,
						"Root":       n.path(dirContainerd, "runc"),
					},
				}}},
			},
			"io.containerd.cri.v1.images": table{
				"pinned_images": table{"sandbox": pauseImage},
				"registry":      table{"config_path": n.path(dirEtc, "registries")},
			},
			// Also the machine's clients, outside the namespace, stream from here.
			"io.containerd.grpc.v1.cri": table{
				"stream_server_address": n.net.nodeIP().String(),
				"stream_server_port":    containerdStreamPort,
			},
			"io.containerd.internal.v1.opt":          table{"path": n.path(dirContainerd, "opt")},
			"io.containerd.shim.v1.manager":          table{"socket_dir": n.path(dirRun, "s")},
			"io.containerd.image-verifier.v1.bindir": table{"bin_dir": n.path(dirContainerd, "verifiers")},
		},
	}
}

// registryHosts sends pulls from the invented registry to the node's own.
func registryHosts() table {
	address := "http://127.0.0.1:" + registryPort
	return table{
		"server": address,
		"host":   table{address: table{"capabilities": []string{"pull", "resolve"}}},
	}
}

// cniList and its parts are the CNI configuration that both runtimes use.
type cniList struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type cniBridge struct {
	Type        string  `json:"type"`
	Bridge      string  `json:"bridge"`
	IsGateway   bool    `json:"isGateway"`
	HairpinMode bool    `json:"hairpinMode"`
	IPAM        cniIPAM `json:"ipam"`
}

type cniIPAM struct {
	Type    string       `json:"type"`
	DataDir string       `json:"dataDir"`
	Ranges  [][]cniRange `json:"ranges"`
	Routes  []cniRoute   `json:"routes"`
}

type cniRange struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart"`
	RangeEnd   netip.Addr   `json:"rangeEnd"`
	Gateway    netip.Addr   `json:"gateway"`
}

type cniRoute struct {
	Destination string `json:"dst"`
}

// cniCapable is a plugin that acts on pods which ask for one of its capabilities.
type cniCapable struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

func (n *Node) cniSettings() cniList {
	pods := n.net.Pods
	list := cniList{
		CNIVersion: "1.0.0",
		Name:       "ambipod",
		Plugins: []any{
			cniBridge{
				Type: "bridge", Bridge: n.net.bridge(), IsGateway: true, HairpinMode: true,
				IPAM: cniIPAM{
					Type:    "host-local",
					DataDir: n.path(dirLeases),
					Ranges: [][]cniRange{{{
						Subnet:     pods,
						RangeStart: octet(pods, firstPod),
						RangeEnd:   octet(pods, lastPod),
						Gateway:    octet(pods, gatewayOctet),
					}}},
					Routes: []cniRoute{{Destination: "0.0.0.0/0"}},
				},
			},
			cniCapable{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}},
		},
	}
	if n.cfg.Join != nil { // a cluster's pods may ask for limits, too
		list.Plugins = append(list.Plugins, cniCapable{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}})
	}
	return list
}

// writeNetwork writes the configuration of the pods' network.
func (n *Node) writeNetwork() error {
	settings, err := json.MarshalIndent(n.cniSettings(), "", "  ")
	if err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	return n.writeSetting("cni/10-ambipod.conflist", settings)
}

// kubeletConfig has the settings of KubeletConfiguration v1beta1 that the node
// needs; all else is kubelet's default.
type kubeletConfig struct {
	APIVersion               string            `json:"apiVersion"`
	Kind                     string            `json:"kind"`
	ContainerRuntimeEndpoint string            `json:"containerRuntimeEndpoint"`
	StaticPodPath            string            `json:"staticPodPath"`
	FileCheckFrequency       string            `json:"fileCheckFrequency"`
	SyncFrequency            string            `json:"syncFrequency"`
	Address                  string            `json:"address"`
	Authentication           map[string]any    `json:"authentication"`
	Authorization            map[string]string `json:"authorization"`
	ReadOnlyPort             int               `json:"readOnlyPort"`
	HealthzPort              int               `json:"healthzPort"`
	HealthzBindAddress       string            `json:"healthzBindAddress"`
	TLSCertFile              string            `json:"tlsCertFile,omitempty"`
	TLSPrivateKeyFile        string            `json:"tlsPrivateKeyFile,omitempty"`
	ClusterDomain            string            `json:"clusterDomain,omitempty"`
	ClusterDNS               []netip.Addr      `json:"clusterDNS,omitempty"`
	CgroupDriver             string            `json:"cgroupDriver"`
	CgroupRoot               string            `json:"cgroupRoot"`
	FailCgroupV1             bool              `json:"failCgroupV1"`
	FailSwapOn               bool              `json:"failSwapOn"`
	EnforceNodeAllocatable   []string          `json:"enforceNodeAllocatable"`
	OOMScoreAdj              int               `json:"oomScoreAdj"`
	MakeIPTablesUtilChains   bool              `json:"makeIPTablesUtilChains"`
	PodLogsDir               string            `json:"podLogsDir"`
	VolumePluginDir          string            `json:"volumePluginDir"`
	ResolvConf               string            `json:"resolvConf"`
	PodCIDR                  string            `json:"podCIDR"`
	EvictionHard             map[string]string `json:"evictionHard"`
	ImageGCHigh              int               `json:"imageGCHighThresholdPercent"`
	RegisterNode             bool              `json:"registerNode"`
	EnableServer             bool              `json:"enableServer"`
}

// kubeletSettings describe a kubelet that nobody but this machine talks to, so
// everyone may; that neither evicts pods nor removes images because the disk is
// full of other people's files; and that works without an API server.
func (n *Node) kubeletSettings() kubeletConfig {
	settings := kubeletConfig{
		APIVersion:               "kubelet.config.k8s.io/v1beta1",
		Kind:                     "KubeletConfiguration",
		ContainerRuntimeEndpoint: "unix://" + n.CRISocket(),
		StaticPodPath:            n.ManifestDir(),
		FileCheckFrequency:       "1s",
		SyncFrequency:            "10s",
		Address:                  n.net.nodeIP().String(),
		Authentication: map[string]any{
			"anonymous": map[string]bool{"enabled": true},
			"webhook":   map[string]bool{"enabled": false},
		},
		Authorization:          map[string]string{"mode": "AlwaysAllow"},
		ReadOnlyPort:           10255,
		HealthzPort:            10248,
		HealthzBindAddress:     n.net.nodeIP().String(),
		CgroupDriver:           "cgroupfs",
		CgroupRoot:             n.Cgroup(),
		EnforceNodeAllocatable: []string{},
		PodLogsDir:             n.PodLogDir(),
		VolumePluginDir:        n.volumePluginDir(),
		ResolvConf:             n.path(dirEtc, "resolv.conf"),
		EvictionHard: map[string]string{
			"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
		ImageGCHigh:  100,
		EnableServer: true,
	}
	if n.cfg.OwnRoot {
		settings.CgroupRoot, settings.PodLogsDir = "/", podLogs
	}
	if n.cfg.Join != nil {
		n.cfg.Join.adapt(&settings)
	}
	return settings
}

// kubeletYAML is kubelet's configuration file, with what the test wants otherwise.
func (n *Node) kubeletYAML() ([]byte, error) {
	usual, err := yaml.Marshal(n.kubeletSettings())
	if err != nil || len(n.cfg.Kubelet) == 0 {
		return usual, err
	}
	settings := map[string]any{}
	if err := yaml.Unmarshal(usual, &settings); err != nil {
		return nil, err
	}
	maps.Copy(settings, n.cfg.Kubelet)
	return yaml.Marshal(settings)
}

// proxyConfig is criproxy's configuration file.
type proxyConfig struct {
	Listen         string         `json:"listen"`
	StateDir       string         `json:"stateDir"`
	MetricsAddress string         `json:"metricsAddress"`
	Backends       []proxyBackend `json:"backends"`
}

type proxyBackend struct {
	Name            string            `json:"name"`
	Socket          string            `json:"socket"`
	Default         bool              `json:"default,omitempty"`
	IDPrefix        string            `json:"idPrefix,omitempty"`
	ImagePrefixes   []string          `json:"imagePrefixes,omitempty"`
	RuntimeHandlers []string          `json:"runtimeHandlers,omitempty"`
	Annotations     []proxyAnnotation `json:"annotations,omitempty"`
}

type proxyAnnotation struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

// proxySettings are criproxy's defaults on this node's sockets.
func (n *Node) proxySettings() proxyConfig {
	settings := proxyConfig{
		Listen: n.CRIProxySocket(), StateDir: n.path(dirRun, "criproxy"), MetricsAddress: "unix:" + n.CRIProxyStatus(),
	}
	for _, b := range proxy.DefaultConfig().Backends {
		backend := proxyBackend{
			Name: b.Name, Socket: n.VMRuntimeSocket(), Default: b.Default, IDPrefix: b.IDPrefix,
			ImagePrefixes: b.ImagePrefixes, RuntimeHandlers: b.RuntimeHandlers,
		}
		if b.Default {
			backend.Socket = n.ContainerdSocket()
		}
		for _, a := range b.Annotations {
			backend.Annotations = append(backend.Annotations, proxyAnnotation(a))
		}
		settings.Backends = append(settings.Backends, backend)
	}
	return settings
}
