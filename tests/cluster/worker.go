package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ambipod/ambipod/tests/node"
)

// AddPlainNode makes a node without Ambipod, whose kubelet talks to containerd
// itself, a member of the cluster. All else is as with AddNode.
func (c *Cluster) AddPlainNode(ctx context.Context, cfg node.Config) (*node.Node, error) {
	cfg.Without = append(slices.Clone(cfg.Without), node.ImageSite, node.Libvirtd, node.VMRuntime, node.CRIProxy)
	return c.AddNode(ctx, cfg)
}

// AddNode makes another node a member of the cluster and returns when it is ready. Its
// pods and those of the cluster's first node reach each other. The caller stops it
// before the cluster. Errors are those of node.Start. Nothing is left of the node
// after a failure.
func (c *Cluster) AddNode(ctx context.Context, cfg node.Config) (*node.Node, error) {
	cfg.Without = append(slices.Clone(cfg.Without), node.Kubelet)
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := c.add(ctx, n); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, errors.Join(err, n.Stop(cleanup))
	}
	return n, nil
}

// add makes a node that runs a member.
func (c *Cluster) add(ctx context.Context, n *node.Node) error {
	if err := c.node.Link(n); err != nil {
		return err
	}
	ca, err := c.loadAuthority()
	if err != nil {
		return err
	}
	for _, who := range memberIdentities(n) {
		if err := c.issue(ca, who); err != nil {
			return err
		}
	}
	if err := c.makeKubeconfig(kubeletOf(n)); err != nil {
		return err
	}
	if err := c.join(ctx, n); err != nil {
		return err
	}
	if err := routeServices(ctx, n); err != nil {
		return err
	}
	proxy, err := c.daemonOf(Proxy, func() ([]string, string, error) { return c.proxyOf(n) })
	if err != nil {
		return err
	}
	if err := n.Run(ctx, proxy); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "node/"+n.Name(), patience); err != nil {
		return fmt.Errorf("add node %q to the cluster: %w", n.Name(), err)
	}
	return nil
}
