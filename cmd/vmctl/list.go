package main

import (
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newList() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the VM pods of this node",
		Long: `Lists the VM pods of this node, each with its newest VM. RESTARTS counts new VMs that kubelet made
for the pod, REBOOTS what the guest did by itself.`,
		Example: `  vmctl list
  vmctl list -n shop
  vmctl list -o json | jq -r '.items[] | select(.state != "running") | .pod'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withNode(c.Context(), func(n *vmctl.Node) error {
				vms, err := n.List(c.Context())
				if err != nil {
					return err
				}
				if a.namespace != "" {
					vms = slices.DeleteFunc(vms, func(vm vmctl.VM) bool { return vm.Namespace != a.namespace })
				}
				return vmctl.WriteVMs(a.out, format, vms, time.Now())
			})
		},
	}
	addFormat(c, &format, vmctl.FormatJSON, vmctl.FormatYAML, vmctl.FormatName)
	return c
}
