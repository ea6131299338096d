package main

import (
	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newInspect() *cobra.Command {
	format := vmctl.FormatYAML
	c := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show all that is known of a VM",
		Long: `Shows what the CRI, vmruntime and libvirt know of a VM: state, network, files, disks, control group,
use of resources, configuration and libvirt's description. Values of environment variables, cloud-init
data and other secrets are replaced.`,
		Example: `  vmctl inspect my-vm
  vmctl inspect my-vm -o json | jq -r .domainXML`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), func(n *vmctl.Node) error {
				vm, err := n.Find(c.Context(), a.qualify(args[0]))
				if err != nil {
					return err
				}
				return vmctl.WriteInspection(a.out, format, n.Inspect(c.Context(), vm))
			})
		},
	}
	addFormat(c, &format, vmctl.FormatYAML, vmctl.FormatJSON)
	return c
}
