// Package cluster makes a Kubernetes cluster of one private node: etcd, API
// server, scheduler, controller manager, kube-proxy, CoreDNS and metrics-server
// around the daemons of package tests/node. Other nodes, with Ambipod or without, can
// be added. It is what `make cluster` starts and what the tests in tests/e2e/cluster
// and tests/e2e/install run on.
//
// Nouns. A Cluster is a Node whose kubelet has joined an API server which runs
// in the node's own network namespace; added nodes have namespaces of their own, with a
// link to that one. Everybody proves who he is by a
// certificate of the cluster's authority; rights are RBAC's and the node
// authorizer's. Files are below the node's root, in the folder cluster; logs
// are among the node's.
//
// Services have addresses in 10.255.0.0/24, which mean something in the node's
// namespace and its pods alone, and names below cluster.local, for pods alone.
//
// Lifetime and concurrency are those of Node: daemons outlive the program that
// started them, and Node.Stop removes all. Kubectl and Get may be called from
// several goroutines.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/node"
)

// serviceCIDR is where Services get their addresses from. No pod network of a
// private node overlaps it.
var serviceCIDR = netip.MustParsePrefix("10.255.0.0/24")

// Names of the daemons, under which Node knows and logs them.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Proxy             = "kube-proxy"
	MetricsServer     = "metrics-server"
	DNS               = "coredns"
)

// cleanupTime bounds what is done after the caller's context is gone.
const cleanupTime = 2 * time.Minute

// patience is how long kubectl waits while the cluster starts.
const patience = "--timeout=120s"

// Cluster is a private cluster; see the package comment.
type Cluster struct {
	node *node.Node
	dir  string
}

// Start makes a cluster and returns when its node is ready for pods of both
// kinds. Errors are those of node.Start. Nothing is left after a failure.
func Start(ctx context.Context, cfg node.Config) (*Cluster, error) {
	cfg.Without = append(slices.Clone(cfg.Without), node.Kubelet)
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c := Of(n)
	if err := c.start(ctx); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, errors.Join(err, n.Stop(cleanup))
	}
	return c, nil
}

// Of is the cluster that was started on the node.
func Of(n *node.Node) *Cluster {
	return &Cluster{node: n, dir: filepath.Join(n.Root(), "cluster")}
}

// Node is the cluster's node. Stopping it removes the cluster.
func (c *Cluster) Node() *node.Node { return c.node }

// Kubeconfig is the file with which kubectl, on this machine, may do everything.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig(admin) }

func (c *Cluster) start(ctx context.Context) error {
	if err := c.node.Step("make certificates", c.makeIdentities); err != nil {
		return err
	}
	for _, name := range []string{Etcd, APIServer, ControllerManager, Scheduler} {
		if err := c.run(ctx, name); err != nil {
			return err
		}
	}
	if err := c.join(ctx, c.node); err != nil {
		return err
	}
	if err := errors.Join(c.register(ctx, MetricsServer, metricsPort), c.register(ctx, DNS, dnsPort)); err != nil {
		return err
	}
	if err := routeServices(ctx, c.node); err != nil {
		return err
	}
	// kube-proxy takes its time if it comes before its node.
	for _, name := range []string{Proxy, MetricsServer, DNS} {
		if err := c.run(ctx, name); err != nil {
			return err
		}
	}
	return c.node.Step("let the cluster settle", func() error { return c.settle(ctx) })
}

// join makes a node that has its identities a member, which takes VM pods if it has
// vmruntime, and the images of examples/ available on it.
func (c *Cluster) join(ctx context.Context, n *node.Node) error {
	var labels map[string]string
	if n.Has(node.VMRuntime) {
		labels = map[string]string{"vm.ambipod.io/capable": "true", "extraRuntime": "virtlet"} // as deploy/base labels them
	}
	err := n.Join(node.Join{
		Kubeconfig:  c.kubeconfig(kubeletOf(n)),
		ClientCA:    c.certificate(authority),
		Certificate: c.certificate(kubeletServing(n)),
		Key:         c.key(kubeletServing(n)),
		DNS:         dnsIP(),
		Labels:      labels,
	})
	if err != nil {
		return err
	}
	// The examples' containers are Docker Hub's busybox; here it is our own.
	err = errors.Join(n.ServeEveryRegistry(), n.PushImage(ctx, "busybox", "library/busybox"))
	if err != nil {
		return err
	}
	if n.Has(node.VMRuntime) { // ConfigMaps and Secrets that annotations name
		n.SetArgs(node.VMRuntime, "--kubeconfig", c.kubeconfig(kubeletOf(n)))
		if err := n.Restart(ctx, node.VMRuntime); err != nil {
			return err
		}
	}
	return n.Step("start "+node.Kubelet, func() error {
		if err := n.StartDaemon(ctx, node.Kubelet); err != nil {
			return err
		}
		_, err := c.Kubectl(ctx, "wait", "--for=create", "node/"+n.Name(), patience)
		return err
	})
}

// settle adds what every cluster with Ambipod has, unless that is to be installed,
// and waits until pods can run.
func (c *Cluster) settle(ctx context.Context) error {
	if err := c.addHostPaths(ctx); err != nil {
		return err
	}
	var manifests []string
	if c.node.Has(node.VMRuntime) {
		base := filepath.Join(c.node.Checkout(), "deploy", "base")
		manifests = append(manifests, filepath.Join(base, "runtimeclass.yaml"), filepath.Join(base, "admission.yaml"))
	}
	for _, manifest := range manifests {
		if _, err := c.Kubectl(ctx, "apply", "-f", manifest); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"wait", "--for=condition=Ready", "node/" + c.node.Name(), patience},
		{"wait", "--for=create", "serviceaccount/default", patience},
	} {
		if _, err := c.Kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// routeServices lets a node's own processes and pods of its network speak to
// Services: kube-proxy changes addresses of packets only if there is a way for them.
func routeServices(ctx context.Context, n *node.Node) error {
	argv := []string{
		"--net=" + n.Namespace(), "ip", "route", "replace", serviceCIDR.String(), "dev", "lo", "src", n.IP().String(),
	}
	if out, err := exec.CommandContext(ctx, "nsenter", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("make route to Services: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// run starts one of the cluster's daemons.
func (c *Cluster) run(ctx context.Context, name string) error {
	d, err := c.daemon(name)
	if err != nil {
		return err
	}
	return c.node.Run(ctx, d)
}

// Restart ends one of the cluster's own daemons by SIGTERM and starts it again.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	if err := c.node.Terminate(ctx, name); err != nil {
		return err
	}
	return c.run(ctx, name)
}

// path is a file of the cluster.
func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// write makes a file of the cluster.
func (c *Cluster) write(name string, data []byte) error {
	if err := os.WriteFile(c.path(name), data, 0o600); err != nil { //nolint:gosec // names are constants of this package
		return fmt.Errorf("write file of cluster: %w", err)
	}
	return nil
}

// serviceIP is the API server's own Service.
func serviceIP() netip.Addr { return serviceCIDR.Addr().Next() }

// dnsIP is the name server's Service.
func dnsIP() netip.Addr { return serviceIP().Next() }

// unknown is for names that no daemon has.
func unknown(name string) error {
	return fmt.Errorf("the cluster has no daemon %q: %w", name, errdefs.ErrNotFound)
}
