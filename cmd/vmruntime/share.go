package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/criserver"
	"github.com/ambipod/ambipod/pkg/volumes"
)

// shareCommand is the verb by which vmruntime calls itself to serve a folder; see
// volumes.RunShare.
const shareCommand = "share"

// newShare is hidden: nobody but vmruntime calls it.
func newShare() *cobra.Command {
	return &cobra.Command{
		Use:    shareCommand,
		Hidden: true,
		// Paths may begin with dashes.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return volumes.RunShare(args[0], args[1:], func(group string) error { return cgroup.Add(group, os.Getpid()) })
		},
	}
}

// shareServer starts servers by this very program, also when its file was replaced.
func shareServer(virtiofsd string, user criserver.User) volumes.ShareServer {
	return volumes.ShareServer{Launcher: []string{"/proc/self/exe", shareCommand, virtiofsd}, UID: user.UID, GID: user.GID}
}

// folders is how VMs have folders of this machine if their pods do not say.
func folders(virtiofsd string, logger *slog.Logger) string {
	if _, err := os.Stat(virtiofsd); err != nil {
		logger.Warn("there is no virtiofsd, so VMs get folders by 9p unless their pods say otherwise; install the package qemu-system-common or see --virtiofsd", "err", err)
		return "9p"
	}
	return "virtiofs"
}
