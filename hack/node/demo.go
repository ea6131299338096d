package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// Deadlines of the demo's steps, each many times what is usual.
const (
	podTime     = 4 * time.Minute // from manifest to Running, with the pull
	bootTime    = 4 * time.Minute // from Running to the guest's page
	removalTime = 3 * time.Minute
	downTime    = 3 * time.Minute
)

func newDemo(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Start a node, run a container pod and a VM pod, look at both, remove all",
		Example: `  make demo
  _build/bin/node demo --accelerator tcg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), o) },
	}
}

// demo is one run: a node and what it is made to do.
type demo struct {
	*progress
	n         *node.Node
	container *corev1.Pod
	machine   *corev1.Pod
	table     string   // of both pods while they ran
	console   []string // the end of the VM's, as it is in the pod's log
}

func runDemo(ctx context.Context, o *options) error {
	p := newProgress(os.Stdout)
	cfg, err := o.config("demo", p)
	if err != nil {
		return err
	}
	began := time.Now()
	p.printf("A node of its own: kubelet -> criproxy -> containerd and vmruntime -> libvirtd\n")
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return err
	}
	d := &demo{progress: p, n: n}
	err = d.run(ctx)
	if err != nil {
		err = errors.Join(err, d.keepLogs(filepath.Join(cfg.Checkout, "_run", "demo-logs")))
	}
	if err := errors.Join(err, d.down(ctx)); err != nil {
		return err
	}
	p.printf("\nHow long the steps took\n%s", lapTable(p.laps, time.Since(began)))
	p.printf("\nThe demo succeeded: both kinds of pod ran under one kubelet, and nothing is left of them.\n")
	return nil
}

func (d *demo) run(ctx context.Context) error {
	d.printf("\nOne container pod and one VM pod\n")
	steps := []struct {
		name    string
		timeout time.Duration
		do      func(context.Context) error
	}{
		{"container pod: Running according to kubelet", podTime, d.startContainer},
		{"VM pod: Running according to kubelet", podTime, d.startMachine},
		{"VM: page fetched by its pod IP from the host", bootTime, d.fetchFromHost},
		{"VM: page fetched from inside the container pod", bootTime, d.fetchFromContainer},
		{"VM: console with login prompt in the pod's log file", bootTime, d.readConsole},
		{"both pods: asked for their state and memory", podTime, d.makeTable},
		{"both pods: removed by kubelet", removalTime, d.remove},
		{"no domain, tap, namespace, lease, disk or process is left", removalTime, d.verifyNothingLeft},
	}
	for _, s := range steps {
		stepContext, cancel := context.WithTimeout(ctx, s.timeout)
		err := d.do(s.name, func() error { return s.do(stepContext) })
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	d.printf("\nBoth pods while they ran\n%s", d.table)
	d.printf("\nThe end of the VM's console, from the pod's log\n  | %s\n", strings.Join(d.console, "\n  | "))
	return nil
}

// down removes the node, also after an interruption.
func (d *demo) down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTime)
	defer cancel()
	return d.do("take the node down", func() error { return remove(ctx, d.n) })
}

// keepLogs saves the daemons' messages before the node goes.
func (d *demo) keepLogs(dir string) error {
	if err := d.n.SaveLogs(dir); err != nil {
		return err
	}
	d.printf("The daemons' logs are kept in %s\n", dir)
	return nil
}
