// Command criproxy is the CRI server that kubelet connects to; it routes each
// call to the container runtime or the VM runtime that owns the object.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/logging"
	"github.com/ambipod/ambipod/pkg/proxy"
)

// version is set by the linker.
var version = "development"

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
  criproxy
        with the built-in configuration
  criproxy -config /etc/ambipod/criproxy.yaml -v=4
        log every call that changes something; -v=5: every call, -v=6: with requests
  criproxy -config criproxy.yaml -check-config
        say nothing if the file is right, else one sentence and exit status 2
  echo '{"method": "RunPodSandbox", "request": {"runtime_handler": "vm"}}' | criproxy -explain -
        tell where this call would go and why

kubelet is told to use it by containerRuntimeEndpoint: unix:///run/ambipod/criproxy.sock
SIGHUP reads the configuration again, SIGTERM waits for running calls and stops.

Flags:
`

// options are the command line's settings.
type options struct {
	config      string
	listen      string
	stateDir    string
	checkConfig bool
	explain     string
	version     bool
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main with its surroundings handed in; it returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return exitBadConfig // parse has said why
	}
	if o.version {
		_, _ = fmt.Fprintln(stdout, "criproxy version", version)
		return 0
	}
	config, err := o.load()
	if err != nil {
		complain(stderr, err)
		return exitBadConfig
	}
	switch {
	case o.checkConfig:
	case o.explain != "":
		err = explain(config, o.explain, stdin, stdout)
	default:
		err = serve(o, config, logging.New())
	}
	if err != nil {
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
	flags.StringVar(&o.config, "config", "", "configuration `file` (default "+defaultFile()+" if it exists, else built in)")
	flags.StringVar(&o.listen, "listen", "", "`socket` for kubelet, instead of the configured one")
	flags.StringVar(&o.stateDir, "state-dir", "", "`folder` for the last known lists, instead of the configured one")
	flags.BoolVar(&o.checkConfig, "check-config", false, "check the configuration and exit")
	flags.StringVar(&o.explain, "explain", "", "tell where the request in this JSON `file` (- for standard input) would go, and exit")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
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

func defaultFile() string { return filepath.Join(layout.DefaultConfig, "criproxy.yaml") }

// load reads the configuration and applies the flags to it.
func (o *options) load() (*proxy.Config, error) {
	config, err := o.read()
	if err != nil {
		return nil, err
	}
	return config.With(o.listen, o.stateDir)
}

func (o *options) read() (*proxy.Config, error) {
	if o.config != "" {
		return proxy.LoadConfig(o.config)
	}
	config, err := proxy.LoadConfig(defaultFile())
	if errors.Is(err, os.ErrNotExist) {
		return proxy.DefaultConfig(), nil
	}
	return config, err
}

// explain answers a question from a file or from standard input.
func explain(config *proxy.Config, from string, stdin io.Reader, stdout io.Writer) error {
	var question []byte
	var err error
	if from == "-" {
		question, err = io.ReadAll(stdin)
	} else {
		question, err = os.ReadFile(from)
	}
	if err != nil {
		return fmt.Errorf("read the question: %w", err)
	}
	text, err := proxy.Explain(config, question)
	if err != nil {
		return err
	}
	_, err = io.WriteString(stdout, text)
	return err
}
