package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newDiagnose() *cobra.Command {
	d := vmctl.Diagnosis{Config: []string{layout.DefaultConfig}}
	var file string
	c := &cobra.Command{
		Use:   "diagnose [-f ARCHIVE.tar.gz]",
		Short: "Collect what a bug report needs, without secrets",
		Long: `Writes one archive with versions, configuration, the answers of vmruntime, criproxy and libvirt,
metrics, goroutines, the ends of logs, and facts about this machine. It works with daemons that are
away, too; what cannot be collected is listed.

Values of environment variables, cloud-init data, passwords, tokens, keys and arguments of commands are
removed, and consoles of guests are left out. Names, addresses and images are not: look through the
archive before you give it away.`,
		Example: `  vmctl diagnose
  vmctl diagnose -f bug.tar.gz --log /var/log/kubelet.log`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			d.Settings, d.Version, d.Now, d.Logger = a.settings, version, time.Now(), a.logger()
			if file == "" {
				file = "ambipod-" + d.Now.UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			var problems []string
			err := a.create(file, func(to *os.File) (err error) {
				problems, err = vmctl.Diagnose(c.Context(), d, to)
				return err
			})
			if err != nil {
				return err
			}
			for _, problem := range problems {
				_, _ = fmt.Fprintln(a.errOut, "not collected:", problem)
			}
			_, err = fmt.Fprintf(a.out, "Written to %s. Secrets are removed as far as they can be recognised: look through it before you give it away.\n", file)
			return err
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "archive to write (default ambipod-TIME.tar.gz)")
	c.Flags().StringSliceVar(&d.Config, "config", d.Config, "files and folders of configuration")
	c.Flags().StringSliceVar(&d.Logs, "log", nil, "files and folders of logs, beside systemd's journals and QEMU's logs")
	c.Flags().StringVar(&d.Proxy, "criproxy-config", environment("AMBIPOD_CRIPROXY_CONFIG", configFile("criproxy.yaml")),
		"criproxy's configuration, which tells where its socket and metrics are; AMBIPOD_CRIPROXY_CONFIG names it, too")
	return c
}
