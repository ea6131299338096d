package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/tests/node"
)

// upName is the node of `make up`; the demo has one of its own.
const upName = "ambipod"

func newUp(o *options) *cobra.Command {
	var clustered bool
	command := &cobra.Command{
		Use:   "up",
		Short: "Start a node and leave it running",
		Example: `  make up
  . _run/env
  sed "s|image: .*|image: $VM_IMAGE|" examples/vm-pod.yaml >"$STATIC_PODS/vm.yaml"
  $CRICTL pods`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if clustered {
				return upCluster(cmd.Context(), o)
			}
			return up(cmd.Context(), o)
		},
	}
	command.Flags().BoolVar(&clustered, "cluster", false, "make the node a cluster with a control plane of its own")
	return command
}

func newDown(o *options) *cobra.Command {
	var all bool
	command := &cobra.Command{
		Use:   "down",
		Short: "Remove the node that up started, with all its pods",
		Example: `  make down
  make down ALL=1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), o, all) },
	}
	command.Flags().BoolVar(&all, "all", false, "remove all nodes of this checkout: also what killed tests have left, and what tests use that run")
	return command
}

func up(ctx context.Context, o *options) error {
	p := newProgress(os.Stdout)
	cfg, err := o.config(upName, p)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, cfg)
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w: make down removes it", err)
	}
	if err != nil {
		return err
	}
	env := envFile(cfg)
	if err := writeEnv(env, n.Env()); err != nil {
		return errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
	}
	p.printf(usage, env, n.Root())
	return nil
}

// usage is printed when the node is up; arguments are the env file and the root.
const usage = `
The node is up. Its addresses are in %s; from the top of the checkout:

  . _run/env
  # one VM pod and one container pod, as static pods
  sed "s|image: .*|image: $VM_IMAGE|" examples/vm-pod.yaml >"$STATIC_PODS/vm.yaml"
  sed "s|image: .*|image: $CONTAINER_IMAGE|" examples/container-pod.yaml >"$STATIC_PODS/container.yaml"
  # look at them through the CRI, as kubelet does
  $CRICTL pods
  $CRICTL ps -a
  # see the VM boot, which takes some ten seconds (Ctrl-C ends), then get into it
  $CRICTL logs -f "$($CRICTL ps -q --name machine)"
  $CRICTL exec -it "$($CRICTL ps -q --name machine)" sh
  # look after the VMs: list, console, exec, images, inspect, diagnose …
  $VMCTL list
  $VMCTL console web-vm-ambipod
  # ask kubelet and libvirt
  curl -sk "$KUBELET_URL/pods" | jq '.items[] | .metadata.name, .status.phase, .status.podIP'
  virsh -c "$LIBVIRT_URI" list
  # remove one again
  rm "$STATIC_PODS/vm.yaml"

Files and logs are in %s. Remove the node with: make down
`

func down(ctx context.Context, o *options, all bool) error {
	p := newProgress(os.Stdout)
	cfg, err := o.config(upName, p)
	if err != nil {
		return err
	}
	nodes, err := toRemove(cfg, all)
	if err == nil && len(nodes) == 0 {
		p.printf("No node is up.\n")
	}
	for _, n := range nodes {
		err = errors.Join(err, p.do("remove node "+n.Name()+" with all its pods", func() error { return remove(ctx, n) }))
	}
	if err != nil {
		return err
	}
	return removeEnv(envFile(cfg))
}

// toRemove is the node that up started, or all of its checkout.
func toRemove(cfg node.Config, all bool) ([]*node.Node, error) {
	if all {
		return node.All(cfg.Checkout)
	}
	n, err := node.Load(node.Root(cfg))
	switch {
	case errdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []*node.Node{n}, nil
}

func remove(ctx context.Context, n *node.Node) error {
	if err := n.Stop(ctx); err != nil {
		return err
	}
	remains, err := n.Remains()
	if err == nil && len(remains) > 0 {
		err = fmt.Errorf("this is left of the node: %s", strings.Join(remains, "; "))
	}
	return err
}

func envFile(cfg node.Config) string { return filepath.Join(cfg.Checkout, "_run", "env") }

func writeEnv(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // others may read how to use the node
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // the same
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func removeEnv(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
