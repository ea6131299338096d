package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

const (
	sshPort = 22
	maxPort = 1<<16 - 1
)

// sshOptions are what the command line says.
type sshOptions struct {
	login   string
	key     string
	port    int
	options []string
}

func (a *app) newSSH() *cobra.Command {
	var o sshOptions
	c := &cobra.Command{
		Use:   "ssh [USER@]NAME [-l USER] [-i KEY] [-- COMMAND [ARGUMENT...]]",
		Short: "Log in to a VM with the system's ssh",
		Long: `Starts the system's ssh, connected with the VM through vmruntime, so that nothing but this node's own
network is in between. The guest needs an SSH server and an account that lets you in, for example by
the annotation vm.ambipod.io/ssh-keys.

A VM's host key is accepted at the first login and kept in ~/.ssh/ambipod_known_hosts under the VM's
ID; a VM with another key is refused from then on. vmctl ends with ssh's exit code, which is the
command's, or 255.`,
		Example: `  vmctl ssh debian@my-vm
  vmctl ssh my-vm -l root -i ~/.ssh/id_ed25519
  vmctl ssh root@my-vm -- systemctl --failed
  vmctl ssh root@my-vm -o LocalForward="8080 localhost:80"`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			user, name, found := strings.Cut(args[0], "@")
			if !found {
				user, name = "", args[0]
			}
			o.login = cmp.Or(o.login, user)
			return a.withVM(c.Context(), name, func(_ *vmctl.Node, vm vmctl.VM) error {
				return a.ssh(c.Context(), vm, o, args[1:])
			})
		},
	}
	c.Flags().StringVarP(&o.login, "login", "l", "", "user to log in as (default: as ssh decides)")
	c.Flags().StringVarP(&o.key, "identity", "i", "", "file of the private key (default: as ssh decides)")
	c.Flags().IntVarP(&o.port, "port", "p", sshPort, "port of the guest's SSH server")
	c.Flags().StringArrayVarP(&o.options, "option", "o", nil, "option for ssh, as in ssh_config(5); may be repeated")
	return c
}

func (a *app) ssh(ctx context.Context, vm vmctl.VM, o sshOptions, command []string) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return fmt.Errorf("the program ssh is missing, install openssh-client: %w", errdefs.ErrNotFound)
	}
	arguments, err := a.sshArguments(vm, o, command)
	if err != nil {
		return err
	}
	// ssh gets the keyboard's signals itself.
	ssh := exec.CommandContext(context.WithoutCancel(ctx), program, arguments...) //nolint:gosec // the caller is who runs it
	ssh.Stdin, ssh.Stdout, ssh.Stderr = a.in, a.out, a.errOut
	if err := ssh.Start(); err != nil {
		return fmt.Errorf("start ssh: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ssh.Process.Signal(syscall.SIGTERM) })
	defer stop()
	err = ssh.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return vmctl.ExitError{Code: exit.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("ssh to VM %s: %w", vm.Name(), err)
	}
	return nil
}

// sshArguments has ssh connect by a vmctl of its own.
func (a *app) sshArguments(vm vmctl.VM, o sshOptions, command []string) ([]string, error) {
	if o.port < 1 || o.port > maxPort {
		return nil, usageError{fmt.Errorf("--port is %d, it must be from 1 to %d", o.port, maxPort)}
	}
	self, err := a.self()
	if err != nil {
		return nil, err
	}
	tunnel := append(self, tunnelVerb, vm.ContainerID, strconv.Itoa(o.port))
	for i := range tunnel {
		tunnel[i] = shellQuote(strings.ReplaceAll(tunnel[i], "%", "%%")) // ssh expands %
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, fmt.Errorf("find your home folder for ssh's known hosts: %w", err)
	}
	// The first value that ssh finds for an option counts.
	var arguments []string
	for _, option := range o.options {
		arguments = append(arguments, "-o", option)
	}
	arguments = append(arguments,
		"-o", "ProxyCommand="+strings.Join(tunnel, " "),
		"-o", "HostKeyAlias="+vm.ContainerID,
		"-o", "CheckHostIP=no",
		"-o", "StrictHostKeyChecking=accept-new",
		"-o", `UserKnownHostsFile="`+filepath.Join(home, ".ssh", "ambipod_known_hosts")+`"`,
	)
	if o.login != "" {
		arguments = append(arguments, "-l", o.login)
	}
	if o.key != "" {
		arguments = append(arguments, "-i", o.key, "-o", "IdentitiesOnly=yes")
	}
	return append(append(arguments, "--", vm.Pod), command...), nil
}

// shellQuote makes one word of a shell command from any text.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
