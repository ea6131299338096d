package main

import (
	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newVersion() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of vmctl, the daemons, libvirt and QEMU",
		Example: `  vmctl version
  vmctl version -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			v := vmctl.Versions{Vmctl: version}
			if err := a.withNode(c.Context(), func(n *vmctl.Node) error {
				v = n.Versions(c.Context(), version)
				return nil
			}); err != nil {
				v.Problems = append(v.Problems, oneSentence(err)) // one's own is worth telling
			}
			return vmctl.WriteVersions(a.out, format, v)
		},
	}
	addFormat(c, &format, vmctl.FormatJSON, vmctl.FormatYAML)
	return c
}
