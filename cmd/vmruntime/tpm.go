package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/criserver"
	"github.com/ambipod/ambipod/pkg/tpm"
)

// tpmCommand is the verb by which vmruntime calls itself to start a TPM; see tpm.Run.
const tpmCommand = "tpm"

// newTPM is hidden: nobody but vmruntime calls it.
func newTPM() *cobra.Command {
	return &cobra.Command{
		Use:    tpmCommand,
		Hidden: true,
		// Paths may begin with dashes.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return tpm.Run(args, func(group string) error { return cgroup.Add(group, os.Getpid()) })
		},
	}
}

// tpmServer starts TPMs by this very program, also when its file was replaced.
func tpmServer(swtpm string, user criserver.User) tpm.Server {
	return tpm.Server{Program: swtpm, Launcher: []string{"/proc/self/exe", tpmCommand}, UID: user.UID, GID: user.GID}
}
