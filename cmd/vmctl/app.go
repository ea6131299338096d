package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/vmctl"
)

// app is one run of the program.
type app struct {
	name    string // as people type it
	program string // as it was started
	in      *os.File
	out     io.Writer
	errOut  io.Writer

	settings  vmctl.Settings
	namespace string
	verbose   bool
}

func newApp(program string, in *os.File, out, errOut io.Writer) *app {
	return &app{name: displayName(program), program: program, in: in, out: out, errOut: errOut}
}

const description = `vmctl looks after the VM pods of the node that it runs on, as root: it lists them, gets into them,
shows their screens, manages disk images, and collects what a bug report needs.

NAME is a pod's name, NAMESPACE/POD, or the beginning of the ID of its VM or sandbox.

It finds vmruntime at its usual socket and asks it for all else. For a node with other paths, set
flags or their environment variables:

  --runtime-endpoint  AMBIPOD_RUNTIME_ENDPOINT  CRI socket of vmruntime or criproxy
  --status-address    AMBIPOD_STATUS_ADDRESS    vmruntime's metrics and progress
  --libvirt-uri       AMBIPOD_LIBVIRT_URI       libvirtd
  --run-dir           AMBIPOD_RUN_DIR           where to look for sockets
  --state-dir         AMBIPOD_STATE_DIR         vmruntime's files

Exit codes: 0 if all went well, 1 if not, 2 if the command line is wrong. exec and ssh end with the
code of the command that they run.`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "vmctl",
		Short:         "Look after the VM pods of this node",
		Long:          description,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: a.name},
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	a.addFlags(root)
	root.AddCommand(a.newList(), a.newConsole(), a.newExec(), a.newSSH(), a.newTunnel(), a.newVNC(), a.newScreenshot(),
		a.newImages(), a.newInspect(), a.newDiagnose(), a.newVersion())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	a.finish(root)
	return root
}

// finish gives every command its name in examples, and its usage errors their class.
func (a *app) finish(c *cobra.Command) {
	c.Example = strings.ReplaceAll(c.Example, "vmctl", a.name)
	c.Long = strings.ReplaceAll(c.Long, "vmctl", a.name)
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
			}
			return nil
		}
	}
	for _, child := range c.Commands() {
		a.finish(child)
	}
}

func (a *app) addFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	s := &a.settings
	flags.StringVar(&s.Endpoint, "runtime-endpoint", os.Getenv("AMBIPOD_RUNTIME_ENDPOINT"), "CRI socket of vmruntime or criproxy (default RUN-DIR/vmruntime.sock, else RUN-DIR/criproxy.sock)")
	flags.StringVar(&s.StatusAddress, "status-address", os.Getenv("AMBIPOD_STATUS_ADDRESS"), "HOST:PORT or unix:/PATH of vmruntime's metrics and progress (default: as vmruntime tells)")
	flags.StringVar(&s.LibvirtURI, "libvirt-uri", os.Getenv("AMBIPOD_LIBVIRT_URI"), "libvirtd that runs the VMs (default: as vmruntime tells)")
	flags.StringVar(&s.Layout.Run, "run-dir", environment("AMBIPOD_RUN_DIR", layout.DefaultRun), "where to look for sockets")
	flags.StringVar(&s.Layout.State, "state-dir", environment("AMBIPOD_STATE_DIR", layout.DefaultState), "vmruntime's files")
	flags.StringVarP(&a.namespace, "namespace", "n", "", "namespace of NAME, and the only one to list")
	flags.BoolVar(&a.verbose, "verbose", false, "tell on standard error what goes on")
}

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func (a *app) logger() *slog.Logger {
	if !a.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.errOut, nil))
}

// withNode runs fn with a connection to the node.
func (a *app) withNode(ctx context.Context, fn func(*vmctl.Node) error) (err error) {
	n, err := vmctl.Connect(ctx, a.settings, a.logger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	return fn(n)
}

// withVM runs fn with the running VM that a name means.
func (a *app) withVM(ctx context.Context, name string, fn func(*vmctl.Node, vmctl.VM) error) error {
	return a.withNode(ctx, func(n *vmctl.Node) error {
		vm, err := n.FindRunning(ctx, a.qualify(name))
		if err != nil {
			return err
		}
		return fn(n, vm)
	})
}

// qualify puts the namespace before a name that has none.
func (a *app) qualify(name string) string {
	if a.namespace == "" || strings.Contains(name, "/") {
		return name
	}
	return a.namespace + "/" + name
}

// completeVMs offers the names of VMs.
func (a *app) completeVMs(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if err := a.withNode(c.Context(), func(n *vmctl.Node) error {
		vms, err := n.List(c.Context())
		for _, vm := range vms {
			name := vm.Name()
			if a.namespace == vm.Namespace {
				name = vm.Pod
			}
			names = append(names, cobra.CompletionWithDesc(name, vm.State+" "+vm.Image))
		}
		return err
	}); err != nil {
		cobra.CompErrorln(err.Error())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeImages offers the names of images.
func (a *app) completeImages(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	if err := a.withNode(c.Context(), func(n *vmctl.Node) error {
		images, err := n.ListImages(c.Context())
		for _, image := range images {
			names = append(names, image.Names...)
		}
		return err
	}); err != nil {
		cobra.CompErrorln(err.Error())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// addFormat adds the flag for the format of the output.
func addFormat(c *cobra.Command, format *string, formats ...string) {
	c.Flags().StringVarP(format, "output", "o", *format, "format of the output: "+strings.Join(formats, ", "))
	if err := c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is one line above
	}
}

// self is how another program can start this one, with the same settings.
func (a *app) self() ([]string, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	words := []string{program}
	for flag, value := range map[string]string{
		"--runtime-endpoint": a.settings.Endpoint, "--run-dir": a.settings.Layout.Run, "--state-dir": a.settings.Layout.State,
	} {
		if value != "" {
			words = append(words, flag+"="+value)
		}
	}
	return words, nil
}

func configFile(name string) string { return filepath.Join(layout.DefaultConfig, name) }
