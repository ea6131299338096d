// Command node runs a private Ambipod node: `make demo`, `make up` and `make
// down` are its verbs. See package tests/node for what such a node is.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/tests/node"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

// options are common to all verbs.
type options struct {
	checkout    string
	accelerator string
}

func newCommand() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "node",
		Short: "Run a private Kubernetes node with container pods and VM pods",
		Long: `A private node consists of kubelet, criproxy, containerd, vmruntime and libvirtd. It has its own
network namespace, folders and sockets, touches nothing else of the machine, and needs root and
what hack/setup.sh installs.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&o.checkout, "checkout", ".", "top folder of Ambipod's source, with _build and _tools")
	root.PersistentFlags().StringVar(&o.accelerator, "accelerator", "auto", "how VMs run: auto, kvm or tcg")
	root.AddCommand(newDemo(&o), newUp(&o), newDown(&o))
	return root
}

// config is that of the node with the given name.
func (o *options) config(name string, p *progress) (node.Config, error) {
	top, err := filepath.Abs(o.checkout)
	if err != nil {
		return node.Config{}, fmt.Errorf("find checkout: %w", err)
	}
	// Links would make two nodes of one checkout.
	if top, err = filepath.EvalSymlinks(top); err != nil {
		return node.Config{}, fmt.Errorf("find checkout: %w", err)
	}
	return node.Config{Checkout: top, Name: name, Accelerator: o.accelerator, Progress: p.step}, nil
}
