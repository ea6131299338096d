package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newImages() *cobra.Command {
	var format string
	var watch bool
	c := &cobra.Command{
		Use:     "images",
		Aliases: []string{"image"},
		Short:   "List disk images; pull and remove them",
		Long: `Lists the disk images of this node. SIZE is what an image takes on the node, DISK what a guest sees of
it, USED BY the VMs that were made from it.`,
		Example: `  vmctl images
  vmctl images --watch
  vmctl images pull vm.ambipod.io/cloud.example.org/debian-12.qcow2
  vmctl images rm vm.ambipod.io/cloud.example.org/debian-12.qcow2`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withNode(c.Context(), func(n *vmctl.Node) error {
				if watch {
					return n.WatchDownloads(c.Context(), a.progress(a.out))
				}
				images, err := n.ListImages(c.Context())
				if err != nil {
					return err
				}
				return vmctl.WriteImages(a.out, format, images, time.Now())
			})
		},
	}
	addFormat(c, &format, vmctl.FormatJSON, vmctl.FormatYAML, vmctl.FormatName)
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show the progress of all downloads until Ctrl-C")
	c.AddCommand(a.newPull(), a.newRemoveImage())
	return c
}

// progress shows bars if it writes to a terminal.
func (a *app) progress(to any) *vmctl.Progress {
	file, isFile := to.(*os.File)
	if isFile && vmctl.IsTerminal(file) {
		return vmctl.NewProgress(file, true)
	}
	if to == any(a.out) {
		return vmctl.NewProgress(a.out, false)
	}
	return vmctl.NewProgress(a.errOut, false)
}

func (a *app) newPull() *cobra.Command {
	var user string
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch a disk image and show how it goes on",
		Long: `Fetches a disk image, as kubelet does for a pod, and prints its ID. Ctrl-C ends the download, unless a
pod waits for it too; what has arrived is kept for the next attempt. docs/images.md tells what names
mean.

With --user, the password is asked for on the terminal, or read from standard input.`,
		Example: `  vmctl images pull vm.ambipod.io/cloud.example.org/debian-12.qcow2
  vmctl images pull vm.ambipod.io/oci/registry.example.org/disks/fedora:41 --user me <password-file`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			auth, err := a.credentials(user)
			if err != nil {
				return err
			}
			return a.withNode(c.Context(), func(n *vmctl.Node) error {
				id, err := n.Pull(c.Context(), args[0], auth, a.progress(a.errOut))
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, id)
				return err
			})
		},
	}
	c.Flags().StringVar(&user, "user", "", "user at the server or registry")
	return c
}

// credentials asks for the password of a user, if there is one.
func (a *app) credentials(user string) (*runtimeapi.AuthConfig, error) {
	if user == "" {
		return nil, nil //nolint:nilnil // no credentials are a case, not an error
	}
	var password string
	if vmctl.IsTerminal(a.in) {
		_, _ = fmt.Fprintf(a.errOut, "Password of %s: ", user)
		typed, err := term.ReadPassword(int(a.in.Fd()))
		_, _ = fmt.Fprintln(a.errOut)
		if err != nil {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		password = string(typed)
	} else {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil && line == "" {
			return nil, fmt.Errorf("read the password from standard input: %w", err)
		}
		password = strings.TrimRight(line, "\r\n")
	}
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

func (a *app) newRemoveImage() *cobra.Command {
	return &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove disk images",
		Long: `Removes images with all their names. VMs that were made from one keep its disk; its bytes are freed
with the last of them.`,
		Example:           `  vmctl images rm vm.ambipod.io/cloud.example.org/debian-12.qcow2`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withNode(c.Context(), func(n *vmctl.Node) error {
				var failures error
				for _, name := range args {
					failures = errors.Join(failures, n.RemoveImage(c.Context(), name))
				}
				return failures
			})
		},
	}
}
