// Command criproxy is the CRI server that kubelet connects to; it routes each
// call to the container runtime or the VM runtime that owns the object.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/logging"
	"github.com/ambipod/ambipod/pkg/proxy"
)

// Exit statuses.
const (
	exitFailure   = 1
	exitBadConfig = 2
)

const usage = `criproxy serves the CRI to kubelet and routes each call to the runtime that owns
the object: containerd by default, vmruntime for VM pods.

Usage:
  criproxy [flags]

Examples:
  criproxy                                      with the built-in configuration
  criproxy -config /etc/ambipod/criproxy.yaml -v 4
  criproxy -config criproxy.yaml -check-config  exit status 2 and one sentence if it is wrong

Then start kubelet with containerRuntimeEndpoint: unix:///run/ambipod/criproxy.sock

Flags:
`

// options are the command line's settings.
type options struct {
	config      string
	listen      string
	stateDir    string
	checkConfig bool
}

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run is main with its surroundings handed in; it returns the exit status.
func run(args []string, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return exitBadConfig // the flag package has said why
	}
	config, err := o.load()
	if err != nil {
		complain(stderr, err)
		return exitBadConfig
	}
	if o.checkConfig {
		return 0
	}
	if err := serve(config); err != nil {
		complain(stderr, err)
		return exitFailure
	}
	return 0
}

// complain tells people; if standard error is gone there is nobody to tell.
func complain(stderr io.Writer, err error) { _, _ = fmt.Fprintln(stderr, "criproxy:", err) }

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.CommandLine // glog's flags are there
	flags.Init("criproxy", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Set("logtostderr", "true"); err != nil {
		return nil, err
	}
	flags.StringVar(&o.config, "config", "", "configuration `file`; without one "+filepath.Join(layout.DefaultConfig, "criproxy.yaml")+" is read if it exists")
	flags.StringVar(&o.listen, "listen", "", "`socket` for kubelet, instead of the configured one")
	flags.StringVar(&o.stateDir, "state-dir", "", "`folder` for the last known lists, instead of the configured one")
	flags.BoolVar(&o.checkConfig, "check-config", false, "check the configuration and exit")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q: criproxy takes flags only", flags.Arg(0))
		complain(stderr, err)
		return nil, err
	}
	return o, nil
}

// load reads the configuration and applies the flags to it.
func (o *options) load() (*proxy.Config, error) {
	config, err := o.file()
	if err != nil {
		return nil, err
	}
	if o.listen != "" {
		config.Listen = o.listen
	}
	if o.stateDir != "" {
		config.StateDir = o.stateDir
	}
	return config, nil
}

func (o *options) file() (*proxy.Config, error) {
	if o.config != "" {
		return proxy.LoadConfig(o.config)
	}
	config, err := proxy.LoadConfig(filepath.Join(layout.DefaultConfig, "criproxy.yaml"))
	if errors.Is(err, os.ErrNotExist) {
		return proxy.DefaultConfig(), nil
	}
	return config, err
}

func serve(config *proxy.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := logging.New()
	listener, err := proxy.Listen(ctx, config.Listen)
	if err != nil {
		return err
	}
	p, err := proxy.New(config, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	log.Info("serving the CRI", "socket", config.Listen)
	return p.Run(ctx, listener)
}
