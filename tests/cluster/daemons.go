package cluster

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ambipod/ambipod/tests/node"
)

// Ports on the node's address, but for etcd's, which is on the loopback where no
// pod can reach it.
const (
	etcdPort       = "2379"
	etcdHealthPort = "2381"
	apiPort        = "6443"
	managerPort    = "10257"
	schedulerPort  = "10259"
	proxyPort      = "10256"
	metricsPort    = "4443"
	dnsPort        = "53"
	dnsReadyPort   = "8181"
)

// startTime is how long a daemon may take until it answers: several times what
// was seen on a busy machine.
const startTime = 2 * time.Minute

// etcdPath is Debian's.
const etcdPath = "/usr/bin/etcd"

// daemon says how the daemon of that name is run.
func (c *Cluster) daemon(name string) (node.Daemon, error) {
	build := map[string]func() (argv []string, health string, err error){
		Etcd:              c.etcd,
		APIServer:         c.apiServer,
		ControllerManager: c.controllerManager,
		Scheduler:         c.scheduler,
		Proxy:             c.proxy,
		MetricsServer:     c.metricsServer,
		DNS:               c.dns,
	}[name]
	if build == nil {
		return node.Daemon{}, unknown(name)
	}
	return c.daemonOf(name, build)
}

// daemonOf is a daemon of that name which answers at a URL when it is ready.
func (c *Cluster) daemonOf(name string, build func() (argv []string, health string, err error)) (node.Daemon, error) {
	argv, health, err := build()
	ready := func(ctx context.Context) error {
		_, err := node.Fetch(ctx, health)
		return err
	}
	return node.Daemon{Name: name, Argv: argv, Ready: ready, Timeout: startTime}, err
}

// at is a URL on the node's address.
func (c *Cluster) at(scheme, port, path string) string {
	return scheme + "://" + c.node.IP().String() + ":" + port + path
}

func (c *Cluster) etcd() (argv []string, health string, err error) {
	const client, peer = "https://127.0.0.1:" + etcdPort, "http://127.0.0.1:2380"
	return []string{
		etcdPath,
		"--name", "ambipod",
		"--data-dir", c.path("etcd-data"),
		"--listen-client-urls", client,
		"--advertise-client-urls", client,
		"--cert-file", c.certificate(etcdServer),
		"--key-file", c.key(etcdServer),
		"--trusted-ca-file", c.certificate(authority),
		"--client-cert-auth",
		"--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer,
		"--initial-cluster", "ambipod=" + peer,
		"--listen-metrics-urls", c.at("http", etcdHealthPort, ""),
		// Nothing here must survive a power cut, and disks may be slow.
		"--unsafe-no-fsync",
	}, c.at("http", etcdHealthPort, "/health"), nil
}

func (c *Cluster) apiServer() (argv []string, health string, err error) {
	program, err := c.node.Tool(APIServer)
	return []string{
		program,
		"--bind-address", c.node.IP().String(),
		"--advertise-address", c.node.IP().String(),
		"--secure-port", apiPort,
		"--etcd-servers", "https://127.0.0.1:" + etcdPort,
		"--etcd-cafile", c.certificate(authority),
		"--etcd-certfile", c.certificate(apiServer),
		"--etcd-keyfile", c.key(apiServer),
		"--tls-cert-file", c.certificate(apiServer),
		"--tls-private-key-file", c.key(apiServer),
		"--client-ca-file", c.certificate(authority),
		"--authorization-mode", "Node,RBAC",
		"--enable-admission-plugins", "NodeRestriction",
		// Ambipod's own daemons are.
		"--allow-privileged",
		"--kubelet-certificate-authority", c.certificate(authority),
		"--kubelet-client-certificate", c.certificate(apiToKubelet),
		"--kubelet-client-key", c.key(apiToKubelet),
		"--kubelet-preferred-address-types", "InternalIP",
		"--service-cluster-ip-range", serviceCIDR.String(),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", c.key(serviceAccount),
		"--service-account-signing-key-file", c.key(serviceAccount),
		"--requestheader-client-ca-file", c.certificate(frontAuthority),
		"--requestheader-allowed-names", frontProxy,
		"--requestheader-username-headers", "X-Remote-User",
		"--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", c.certificate(frontProxy),
		"--proxy-client-key-file", c.key(frontProxy),
		// metrics-server is a process of the node, which only its endpoint says.
		"--enable-aggregator-routing",
	}, c.at("https", apiPort, "/readyz"), err
}

func (c *Cluster) controllerManager() (argv []string, health string, err error) {
	program, err := c.node.Tool(ControllerManager)
	argv = append(c.withOwnTmp(program), c.asClient(ControllerManager)...)
	return append(argv,
		"--secure-port", managerPort,
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--service-account-private-key-file", c.key(serviceAccount),
		"--root-ca-file", c.certificate(authority),
		"--cluster-signing-cert-file", c.certificate(authority),
		"--cluster-signing-key-file", c.key(authority),
		"--flex-volume-plugin-dir", c.path("flex-volumes"),
		// The storage class hostpath.
		"--enable-hostpath-provisioner",
		// A guest's load shows soon, so the autoscaler need not wait for minutes.
		"--horizontal-pod-autoscaler-sync-period", "5s",
		"--horizontal-pod-autoscaler-cpu-initialization-period", "5s",
		"--horizontal-pod-autoscaler-initial-readiness-delay", "5s",
	), c.at("https", managerPort, "/healthz"), err
}

func (c *Cluster) scheduler() (argv []string, health string, err error) {
	program, err := c.node.Tool(Scheduler)
	argv = append([]string{program}, c.asClient(Scheduler)...)
	return append(argv,
		"--secure-port", schedulerPort,
		"--leader-elect=false",
	), c.at("https", schedulerPort, "/healthz"), err
}

// asClient are the arguments of a daemon that asks the API server for all it
// needs, also for who its own clients are.
func (c *Cluster) asClient(name string) []string {
	return []string{
		"--kubeconfig", c.kubeconfig(name),
		"--authentication-kubeconfig", c.kubeconfig(name),
		"--authorization-kubeconfig", c.kubeconfig(name),
		"--bind-address", c.node.IP().String(),
	}
}

// proxyConfig has the settings of KubeProxyConfiguration v1alpha1 that the node
// needs; all else is kube-proxy's default.
type proxyConfig struct {
	APIVersion         string            `json:"apiVersion"`
	Kind               string            `json:"kind"`
	Mode               string            `json:"mode"`
	HostnameOverride   string            `json:"hostnameOverride"`
	HealthzBindAddress string            `json:"healthzBindAddress"`
	MetricsBindAddress string            `json:"metricsBindAddress"`
	ClientConnection   map[string]string `json:"clientConnection"`
	Conntrack          proxyConntrack    `json:"conntrack"`
	NFTables           proxyNFTables     `json:"nftables"`
}

// proxyConntrack leaves the machine's connection tracking as it is.
type proxyConntrack struct {
	MaxPerCore            int    `json:"maxPerCore"`
	TCPEstablishedTimeout string `json:"tcpEstablishedTimeout"`
	TCPCloseWaitTimeout   string `json:"tcpCloseWaitTimeout"`
}

type proxyNFTables struct {
	MasqueradeAll bool   `json:"masqueradeAll"`
	SyncPeriod    string `json:"syncPeriod"`
	MinSyncPeriod string `json:"minSyncPeriod"`
}

func (c *Cluster) proxy() (argv []string, health string, err error) { return c.proxyOf(c.node) }

// proxyOf is kube-proxy on one of the nodes.
func (c *Cluster) proxyOf(n *node.Node) (argv []string, health string, err error) {
	program, err := n.Tool(Proxy)
	if err != nil {
		return nil, "", err
	}
	settings, err := yaml.Marshal(proxyConfig{
		APIVersion:         "kubeproxy.config.k8s.io/v1alpha1",
		Kind:               "KubeProxyConfiguration",
		Mode:               "nftables",
		HostnameOverride:   n.Name(),
		HealthzBindAddress: n.IP().String() + ":" + proxyPort,
		MetricsBindAddress: "127.0.0.1:10249",
		ClientConnection:   map[string]string{"kubeconfig": c.kubeconfig(Proxy)},
		Conntrack:          proxyConntrack{0, "0s", "0s"},
		// Two pods of one bridge talk past the node's rules, so an answer must
		// come back to the node or its address is not changed back.
		NFTables: proxyNFTables{MasqueradeAll: true, SyncPeriod: "30s", MinSyncPeriod: "1s"},
	})
	if err != nil {
		return nil, "", fmt.Errorf("write settings of %s: %w", Proxy, err)
	}
	file := "kube-proxy-" + n.Name() + ".yaml"
	return []string{program, "--config", c.path(file), "--v", "2"},
		"http://" + n.IP().String() + ":" + proxyPort + "/livez", c.write(file, settings)
}

func (c *Cluster) metricsServer() (argv []string, health string, err error) {
	program, err := c.node.Tool(MetricsServer)
	argv = append([]string{program}, c.asClient(metrics)...)
	return append(argv,
		"--secure-port", metricsPort,
		"--tls-cert-file", c.certificate(metrics),
		"--tls-private-key-file", c.key(metrics),
		"--kubelet-certificate-authority", c.certificate(authority),
		"--kubelet-preferred-address-types", "InternalIP",
		// As often as it can; a request must end before the next.
		"--metric-resolution", "10s",
		"--kubelet-request-timeout", "9s",
	), c.at("https", metricsPort, "/livez"), err
}

// dns answers for names of the cluster and no others: nothing here leaves the
// machine.
func (c *Cluster) dns() (argv []string, health string, err error) {
	program, err := c.node.Tool(DNS)
	if err != nil {
		return nil, "", err
	}
	ip := c.node.IP().String()
	settings := fmt.Sprintf(`.:%s {
	bind %s
	ready %s:%s
	errors
	kubernetes cluster.local {
		kubeconfig %s
	}
}
`, dnsPort, ip, ip, dnsReadyPort, c.kubeconfig(DNS))
	const file = "Corefile"
	return []string{program, "-conf", c.path(file)}, c.at("http", dnsReadyPort, "/ready"), c.write(file, []byte(settings))
}
