package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Join says how a node's kubelet becomes part of a cluster. All files must lie
// where kubelet sees them: below the node's root.
type Join struct {
	// Kubeconfig is the file with the API server's address and kubelet's identity.
	Kubeconfig string `json:"kubeconfig"`
	// ClientCA is the file with the authority of kubelet's own clients. The API
	// server says what they and bearers of its tokens may do.
	ClientCA string `json:"clientCA"`
	// Certificate and Key are what kubelet's own API shows.
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	// DNS is the address of the cluster's name server, for pods.
	DNS netip.Addr `json:"dns"`
	// Labels are those which the node registers with.
	Labels map[string]string `json:"labels"`
}

// adapt makes the settings of a standalone kubelet those of one in a cluster.
func (j *Join) adapt(settings *kubeletConfig) {
	settings.Authentication = map[string]any{
		"anonymous": map[string]bool{"enabled": false},
		"webhook":   map[string]bool{"enabled": true},
		"x509":      map[string]string{"clientCAFile": j.ClientCA},
	}
	settings.Authorization = map[string]string{"mode": "Webhook"}
	settings.ReadOnlyPort = 0
	settings.TLSCertFile, settings.TLSPrivateKeyFile = j.Certificate, j.Key
	settings.RegisterNode = true
	settings.PodCIDR = ""
	settings.ClusterDomain = "cluster.local"
	settings.ClusterDNS = []netip.Addr{j.DNS}
}

// arguments are what kubelet takes only on its command line.
func (j *Join) arguments() []string {
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(j.Labels)) {
		labels = append(labels, key+"="+j.Labels[key])
	}
	return []string{"--kubeconfig", j.Kubeconfig, "--node-labels", strings.Join(labels, ",")}
}

// Join makes the node's kubelet, which must not run yet, part of a cluster.
// Functions of Node that ask kubelet for its pods then get no answer.
func (n *Node) Join(j Join) error {
	if n.Alive(Kubelet) {
		return fmt.Errorf("kubelet of node %q runs already: %w", n.cfg.Name, errdefs.ErrFailedPrecondition)
	}
	n.cfg.Join = &j
	if err := errors.Join(n.writeKubelet(), n.writeNetwork()); err != nil {
		return err
	}
	return n.save()
}

// kubeletAnswers asks kubelet for its pods, or, if that takes rights, whether it
// is well.
func (n *Node) kubeletAnswers(ctx context.Context) error {
	if n.cfg.Join != nil {
		return answers(ctx, "http://"+n.IP().String()+":10248/healthz")
	}
	return answers(ctx, n.KubeletURL()+"/pods")
}

// Daemon is a program that somebody adds to a node.
type Daemon struct {
	// Name tells the daemon's log and record; it must not be one of the node's own.
	Name string
	// Argv is run in the node's network namespace, as the node's own daemons are.
	Argv []string
	// Ready returns nil when the daemon answers.
	Ready func(context.Context) error
	// Timeout bounds the time from start to ready.
	Timeout time.Duration
}

// Run starts a daemon and returns when it is ready. Stop stops it; added daemons
// are stopped before the node's own, the latest first.
func (n *Node) Run(ctx context.Context, d Daemon) error {
	if n.Alive(d.Name) {
		return fmt.Errorf("%s of node %q runs already: %w", d.Name, n.cfg.Name, errdefs.ErrAlreadyExists)
	}
	argv := append(n.enter(), d.Argv...)
	return n.step("start "+d.Name, func() error {
		return n.run(ctx, daemon{name: d.Name, argv: argv, ready: d.Ready, timeout: d.Timeout})
	})
}

// added lists daemons that Run has started, the earliest first.
func (n *Node) added() []string {
	// The pattern is well-formed, and that is the only error.
	records, _ := filepath.Glob(n.path(dirDaemons, "*.json"))
	var names []string
	for _, record := range records {
		name := strings.TrimSuffix(filepath.Base(record), ".json")
		if !slices.Contains(order(), name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Compare(n.Process(a).Start, n.Process(b).Start)
	})
	return names
}

// Step reports a step of somebody who builds on the node to Config.Progress.
func (n *Node) Step(name string, do func() error) error { return n.step(name, do) }

// Name is what kubelet calls the node.
func (n *Node) Name() string { return n.cfg.Name }

// IP is the node's address, for its pods and for the machine.
func (n *Node) IP() netip.Addr { return n.net.nodeIP() }

// PodCIDR is where the pods' addresses are from.
func (n *Node) PodCIDR() netip.Prefix { return n.net.Pods }

// Tool is the path of a program that hack/build-tools.sh makes. It fails with
// errdefs.ErrFailedPrecondition if the program is missing.
func (n *Node) Tool(name string) (string, error) {
	path := n.tool(name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is missing, run hack/setup.sh cluster: %w", path, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}
