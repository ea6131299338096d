package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

// tunnelVerb is how ssh has this program connect it with a VM.
const tunnelVerb = "tunnel"

// newTunnel is hidden: it is for ssh and other programs that take a ProxyCommand.
func (a *app) newTunnel() *cobra.Command {
	return &cobra.Command{
		Use:               tunnelVerb + " NAME PORT",
		Short:             "Connect standard input and output with a TCP port of a VM",
		Example:           `  ssh -o ProxyCommand='vmctl tunnel my-vm 22' root@my-vm`,
		Hidden:            true,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			port, err := strconv.Atoi(args[1])
			if err != nil || port < 1 || port > maxPort {
				return usageError{fmt.Errorf("%q is no port, it must be a number from 1 to %d", args[1], maxPort)}
			}
			return a.withVM(c.Context(), args[0], func(n *vmctl.Node, vm vmctl.VM) error {
				return n.Tunnel(c.Context(), vm, port, a.in, a.out)
			})
		},
	}
}
