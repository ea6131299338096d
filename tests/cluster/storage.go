package cluster

import (
	"context"
	"strings"
)

// Provisioner is the daemon that makes and deletes volumes of a CSI driver for claims.
const Provisioner = "csi-provisioner"

// provisionerPort is its metrics'.
const provisionerPort = "9809"

// provisionerUser is who it is to the API server.
const provisionerUser = "system:csi-provisioner"

// AddStorage lets claims have volumes of a CSI driver of the cluster's node, which
// serves at a socket: those of the storage class csi-hostpath. Kubelet knows the driver
// already.
func (c *Cluster) AddStorage(ctx context.Context, driver, socket string) error {
	ca, err := c.loadAuthority()
	if err != nil {
		return err
	}
	if err := c.issue(ca, identity{name: Provisioner, user: provisionerUser}); err != nil {
		return err
	}
	if err := c.makeKubeconfig(Provisioner); err != nil {
		return err
	}
	fill := strings.NewReplacer("$DRIVER", driver, "$NODE", c.node.Name())
	if err := c.applyManifest(ctx, Provisioner+".yaml", fill); err != nil {
		return err
	}
	daemon, err := c.daemonOf(Provisioner, func() ([]string, string, error) { return c.provisioner(socket) })
	if err != nil {
		return err
	}
	return c.node.Run(ctx, daemon)
}

func (c *Cluster) provisioner(socket string) (argv []string, health string, err error) {
	program, err := c.node.Tool(Provisioner)
	return []string{
		program,
		"--kubeconfig", c.kubeconfig(Provisioner),
		"--csi-address", socket,
		"--strict-topology",
		"--http-endpoint", c.node.IP().String() + ":" + provisionerPort,
	}, c.at("http", provisionerPort, "/metrics"), err
}
