package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/cluster"
)

// upCluster starts a cluster; down removes it like a node.
func upCluster(ctx context.Context, o *options) error {
	p := newProgress(os.Stdout)
	cfg, err := o.config(upName, p)
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cfg)
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w: make down removes it", err)
	}
	if err != nil {
		return err
	}
	env, err := c.Env()
	if err == nil {
		err = writeEnv(envFile(cfg), c.Node().Env()+env)
	}
	if err != nil {
		return errors.Join(err, c.Node().Stop(context.WithoutCancel(ctx)))
	}
	p.printf(clusterUsage, envFile(cfg), c.Node().Root())
	return nil
}

// clusterUsage is printed when the cluster is up; arguments are the env file and
// the node's root.
const clusterUsage = `
The cluster is up. Its addresses are in %s; from the top of the checkout:

  . _run/env
  $KUBECTL get nodes
  $KUBECTL apply -f examples/pod.yaml
  $KUBECTL logs -f tiny-vm

docs/quickstart.md goes on from here. Files and logs are in %s.
Remove the cluster with: make down
`
