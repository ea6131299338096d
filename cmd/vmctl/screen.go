package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

func (a *app) newVNC() *cobra.Command {
	address := "127.0.0.1:0"
	c := &cobra.Command{
		Use:   "vnc NAME",
		Short: "Make a VM's screen available to a VNC viewer",
		Long: `Listens on a loopback port, prints it, and connects VNC viewers with the VM's screen until Ctrl-C.
The pod needs the annotation vm.ambipod.io/screen: "true".

The port asks for no password: everybody on this node can use it while vmctl runs. To look from
another machine, forward it by ssh.`,
		Example: `  vmctl vnc my-vm
  vmctl vnc my-vm --listen 127.0.0.1:5900
  ssh -L 5900:127.0.0.1:5900 root@node vmctl vnc my-vm --listen 127.0.0.1:5900`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withVM(c.Context(), args[0], func(n *vmctl.Node, vm vmctl.VM) error {
				listener, err := (&net.ListenConfig{}).Listen(c.Context(), "tcp", address)
				if err != nil {
					return fmt.Errorf("listen for viewers: %w", err)
				}
				defer func() { _ = listener.Close() }()
				return n.ServeScreen(c.Context(), vm, listener,
					func() {
						_, _ = fmt.Fprintf(a.out, "The screen of VM %s is at vnc://%s; Ctrl-C ends.\n", vm.Name(), listener.Addr())
					},
					func(err error) { _, _ = fmt.Fprintf(a.errOut, "%s: %s\n", a.name, oneSentence(err)) })
			})
		},
	}
	c.Flags().StringVar(&address, "listen", address, "loopback address and port; port 0 chooses one")
	c.PreRunE = func(*cobra.Command, []string) error { return onLoopback(address) }
	return c
}

// onLoopback refuses to show a screen to the network.
func onLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %w", err)}
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return usageError{fmt.Errorf("--listen is %q, it must be an address of the loopback such as 127.0.0.1:5900, because VNC has no password", address)}
	}
	return nil
}

func (a *app) newScreenshot() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "screenshot NAME -f FILE",
		Short: "Write a picture of a VM's screen, as PNG",
		Long:  `Writes what the VM's screen shows to a PNG file. The pod needs the annotation vm.ambipod.io/screen: "true".`,
		Example: `  vmctl screenshot my-vm -f my-vm.png
  vmctl screenshot my-vm -f - | display -`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVMs,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withVM(c.Context(), args[0], func(n *vmctl.Node, vm vmctl.VM) error {
				picture, err := n.Screenshot(c.Context(), vm)
				if err != nil {
					return err
				}
				return a.write(file, picture)
			})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", `file to write; "-" is standard output (required)`)
	c.PreRunE = func(*cobra.Command, []string) error {
		if file == "" {
			return usageError{errors.New("name the file to write with -f, or - for standard output")}
		}
		return nil
	}
	return c
}

// write makes a file, or prints its content.
func (a *app) write(file string, content []byte) error {
	if file == "-" {
		_, err := a.out.Write(content)
		return err
	}
	return a.create(file, func(to *os.File) error {
		_, err := to.Write(content)
		return err
	})
}

// create makes a file that is there only when it is complete, for root alone.
func (a *app) create(file string, fill func(*os.File) error) (err error) {
	partial, err := os.CreateTemp(filepath.Dir(file), ".vmctl-*")
	if err != nil {
		return fmt.Errorf("make %s: %w", file, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(partial.Name()))
		}
	}()
	if err := errors.Join(fill(partial), partial.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(partial.Name(), file); err != nil {
		return fmt.Errorf("make %s: %w", file, err)
	}
	return nil
}
