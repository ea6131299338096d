package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newConsole() *cobra.Command {
	return &cobra.Command{
		Use:     "console NAME",
		Aliases: []string{"attach"},
		Short:   "Attach to a VM's serial console",
		Long: `Connects this terminal with the VM's serial console. Several people may be attached to one console:
all see the same and all may type. Ctrl-] detaches, all other keys go to the guest. What was printed
before is in the pod's log.

Without a terminal, standard input is typed, and output printed until the VM ends.`,
		Example: `  vmctl console my-vm
  vmctl console shop/my-vm`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withVM(c.Context(), args[0], func(n *vmctl.Node, vm vmctl.VM) error {
				return a.interact(c.Context(), vmctl.IsTerminal(a.in), func(ctx context.Context, s vmctl.Streams) error {
					if s.Sizes != nil {
						_, _ = fmt.Fprintf(a.errOut, "Connected to the console of VM %s; Ctrl-] detaches.\r\n", vm.Name())
						s.Sizes = nil // a serial line has no size
					}
					return n.Attach(ctx, vm, s)
				})
			})
		},
	}
}

// interact runs fn with this process's streams, and with the terminal in raw mode if
// it is to be one.
func (a *app) interact(ctx context.Context, terminal bool, fn func(context.Context, vmctl.Streams) error) (err error) {
	s := vmctl.Streams{In: a.in, Out: a.out, Err: a.errOut}
	if terminal {
		t, openErr := vmctl.OpenTerminal(a.in)
		if openErr != nil {
			return openErr
		}
		s.Terminal, s.Sizes = true, t
		defer func() { err = errors.Join(err, t.Close()) }()
		return fn(ctx, s)
	}
	return fn(ctx, s)
}
