// Command bench measures what criproxy and vmruntime cost, by whole processes:
// everything is a ratio or difference of two things that run in turn on the same
// machine in the same minutes. It asserts nothing: figures are for people, with
// the targets beside them.
//
// Nouns. A section is a group of measurements that can be run alone. A rig is
// criproxy before two test backends, this program itself run as `bench backend`.
// The base of a comparison is what it is compared with, ours is what Ambipod adds.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// environment is what sections are given.
type environment struct {
	checkout string
	criproxy string // the program
	document bool   // write docs/benchmarks.md
	out      io.Writer
}

// part measures one section.
type part struct {
	name string
	run  func(context.Context, environment) (section, error)
}

// parts are all there are, in the order of running.
func parts() []part {
	return []part{
		{"calls", measureCalls},
		{"resources", measureResources},
		{"containers", measureContainers},
		{"vms", measureVMs},
		{"scale", measureScale},
		{"pulls", measurePulls},
		{"images", measureImages},
		{"unpackers", measureUnpackers},
		{"network", measureNetwork},
		{"memory", measureVMMemory},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:forbidigo,gocritic // this is main; nothing is deferred but stop
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "backend" {
		return runBackend(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "relay" {
		return runRelay(ctx, "relay", serveRelay, args[1:])
	}
	if len(args) > 0 && args[0] == "bytes" {
		return runRelay(ctx, "bytes", serveBytes, args[1:])
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	checkout := flags.String("checkout", ".", "top `folder` of the source")
	criproxy := flags.String("criproxy", "", "another `program` than the one in _build/bin to measure")
	only := flags.String("only", "", "comma-separated `sections` to run instead of all")
	document := flags.Bool("document", false, "write docs/benchmarks.md, as without -only and -criproxy")
	if err := flags.Parse(args); err != nil {
		return err
	}
	top, err := filepath.Abs(*checkout)
	if err != nil {
		return fmt.Errorf("find the checkout: %w", err)
	}
	built := filepath.Join(top, "_build", "bin", "criproxy")
	e := environment{checkout: top, criproxy: cmp.Or(*criproxy, built), out: os.Stdout, document: *document || *only == "" && *criproxy == ""}
	var wanted []string
	if *only != "" {
		wanted = strings.Split(*only, ",")
	}
	return measure(ctx, e, wanted)
}

// runBackend is the program in the part of a test backend.
func runBackend(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench backend", flag.ContinueOnError)
	name := flags.String("name", "", "what tells its IDs from another backend's")
	pods := flags.Int("pods", 0, "how many pods it has")
	socket := flags.String("listen", "", "`socket` to serve the CRI on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return serveBackend(ctx, newBackend(*name, *pods), *socket, os.Stdin)
}

// runRelay is the program in the part of a relay.
func runRelay(ctx context.Context, name string, serve func(ctx context.Context, backend, socket string, stdin io.Reader) error, args []string) error {
	flags := flag.NewFlagSet("bench "+name, flag.ContinueOnError)
	backend := flags.String("backend", "", "`socket` of the CRI server behind it")
	socket := flags.String("listen", "", "`socket` to serve on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return serve(ctx, *backend, *socket, os.Stdin)
}

// measure runs the wanted sections, all without any, and reports them.
func measure(ctx context.Context, e environment, wanted []string) error {
	known := parts()
	for _, name := range wanted {
		if !slices.ContainsFunc(known, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no section %q: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	results := filepath.Join(e.checkout, "_run", "bench")
	if err := os.MkdirAll(results, 0o755); err != nil { //nolint:gosec // for people
		return fmt.Errorf("make folder for results: %w", err)
	}
	m, err := thisMachine()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(e.out, m)
	for _, k := range known {
		if len(wanted) > 0 && !slices.Contains(wanted, k.name) {
			continue
		}
		began := time.Now()
		_, _ = fmt.Fprintf(e.out, "==> measure %s\n", k.name)
		s, err := k.run(ctx, e)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(e.out, "    done in %.0f s\n\n%s", time.Since(began).Seconds(), s.markdown())
		if err := s.save(results, m); err != nil {
			return err
		}
		if e.document {
			if err := s.document(filepath.Join(e.checkout, "docs"), m); err != nil {
				return err
			}
		}
	}
	return nil
}
