package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newExec() *cobra.Command {
	var stdin, tty bool
	c := &cobra.Command{
		Use:   "exec NAME [-i] [-t] -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a VM",
		Long: `Runs a command in the guest, as root. The guest needs qemu-guest-agent; docs/exec.md tells more.
vmctl ends with the command's exit code, or 128 and the number of the signal that ended it.`,
		Example: `  vmctl exec my-vm -- uname -a
  vmctl exec -it my-vm -- sh
  tar -cf - folder | vmctl exec -i my-vm -- tar -xf - -C /tmp`,
		Args: func(_ *cobra.Command, args []string) error {
			const least = 2
			if len(args) < least {
				return errors.New("name a VM and, after --, a command")
			}
			return nil
		},
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			if tty && !vmctl.IsTerminal(a.in) {
				return usageError{errors.New("-t needs a terminal as standard input; leave it out")}
			}
			return a.withVM(c.Context(), args[0], func(n *vmctl.Node, vm vmctl.VM) error {
				return a.interact(c.Context(), tty, func(ctx context.Context, s vmctl.Streams) error {
					if !stdin {
						s.In = nil
					}
					return n.Exec(ctx, vm, args[1:], s)
				})
			})
		},
	}
	c.Flags().SetInterspersed(true)
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "give the command standard input")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal, of the size of this one")
	return c
}
