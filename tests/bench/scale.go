package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"  //nolint:depguard // a client's view
	"google.golang.org/grpc/status" //nolint:depguard // a client's view
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// Targets of the issue, at fullHouse VM pods.
const (
	listTime     limit = 5   // ms
	statsTime    limit = 50  // ms
	restartTime  limit = 2   // s
	daemonMemory limit = 120 // MB
	atMostLinear limit = 1
	fullHouse          = 100
)

// sizes are the numbers of VM pods at which the node is measured. The first and
// the last are those that the growth is told of.
func sizes() []int { return []int{10, 25, 50, 75, fullHouse} }

// figure is one of the things that are measured at each size.
type figure struct {
	what, unit string
	most       limit // at fullHouse
	of         func(load) float64
}

func figures() []figure {
	return []figure{
		{"ListPodSandbox + ListContainers, p50", "ms", listTime, func(l load) float64 { return l.list }},
		{"ListContainerStats, p50", "ms", statsTime, func(l load) float64 { return l.stats }},
		{"restart of vmruntime until it serves all, p50", "s", restartTime, func(l load) float64 { return l.restart }},
		{"resident memory of vmruntime + criproxy", "MB", daemonMemory, func(l load) float64 { return l.memory }},
	}
}

// load is what a node with so many VM pods showed, in the units of figures.
type load struct {
	pods                         int
	list, stats, restart, memory float64
}

// measureScale fills a node with VM pods and measures it on the way.
func measureScale(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "scale", Base: fmt.Sprintf("%d VM pods", sizes()[0]), Ours: fmt.Sprintf("%d VM pods", fullHouse),
		Title: "A node full of VM pods, through criproxy",
	}
	n, err := node.Start(ctx, node.Config{Checkout: e.checkout, Name: "bench-scale", Without: []string{node.Kubelet}, Accelerator: "tcg"})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stopNode(ctx, n)) }()
	f, err := newFleet(ctx, n)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.conn.Close()) }()
	defer func() { err = errors.Join(err, f.removeAll(ctx)) }()
	var loads []load
	for _, size := range sizes() {
		began := time.Now()
		if err := f.growTo(ctx, size); err != nil {
			return s, fmt.Errorf("run %d VM pods: %w", size, err)
		}
		grown := time.Since(began)
		l, err := f.measure(ctx)
		if err != nil {
			return s, fmt.Errorf("measure a node with %d VM pods: %w", size, err)
		}
		loads = append(loads, l)
		_, _ = fmt.Fprintf(e.out, "    %d VM pods run after %.0f s more: lists %.2f ms, statistics %.1f ms, restart %.2f s, memory %.1f MB\n",
			size, grown.Seconds(), l.list, l.stats, l.restart, l.memory)
	}
	s.Rows = scaleRows(loads)
	s.plot, err = plotGrowth(loads)
	return s, err
}

// scaleRows compares the first and the last load.
func scaleRows(loads []load) []row {
	first, last := loads[0], loads[len(loads)-1]
	times := float64(last.pods) / float64(first.pods)
	var rows, growth []row
	for _, f := range figures() {
		base, ours := f.of(first), f.of(last)
		r := row{
			What: f.what, Base: fmt.Sprintf("%.3g %s", base, f.unit), Ours: fmt.Sprintf("%.3g %s", ours, f.unit),
			Ratio: fmt.Sprintf("%.2f×", ours/base), Samples: scaleSamples,
		}
		rows = append(rows, f.most.check(r, ours, "%.0f "+f.unit))
		g := row{What: "growth of the same, as a part of linear growth: " + f.what, Samples: scaleSamples}
		share := ours / base / times
		g.Ratio = fmt.Sprintf("%.2f", share)
		growth = append(growth, atMostLinear.check(g, share, "%.0f"))
	}
	return append(rows, growth...)
}

// measure takes all figures of the node as it is.
func (f *fleet) measure(ctx context.Context) (load, error) {
	l := load{pods: len(f.pods)}
	list, err := median(scaleSamples, f.lists(ctx))
	if err != nil {
		return l, err
	}
	stats, err := median(scaleSamples, f.listStats(ctx))
	if err != nil {
		return l, err
	}
	l.list, l.stats = milliseconds(list), milliseconds(stats)
	if l.memory, err = f.memory(); err != nil {
		return l, err
	}
	const restarts = 5
	restart, err := median(restarts, func() error { return f.restart(ctx) })
	l.restart = restart.Seconds()
	return l, err
}

// scaleSamples is how often a call is made for its median.
const scaleSamples = 100

func median(samples int, call func() error) (time.Duration, error) {
	var took []time.Duration
	for range samples {
		t, err := timed(call)
		if err != nil {
			return 0, err
		}
		took = append(took, t)
	}
	return quantileOf(took, 0.5), nil
}

// lists makes both lists, and checks that all is in them.
func (f *fleet) lists(ctx context.Context) func() error {
	return func() error {
		boxes, err := f.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return fmt.Errorf("list sandboxes: %w", err)
		}
		list, err := f.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		return errors.Join(f.complete("sandboxes", len(boxes.GetItems())), f.complete("containers", len(list.GetContainers())))
	}
}

// listStats lists the use of all VMs, and checks that none lacks its CPU time.
func (f *fleet) listStats(ctx context.Context) func() error {
	return func() error {
		answer, err := f.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if err != nil {
			return fmt.Errorf("list statistics: %w", err)
		}
		known := 0
		for _, s := range answer.GetStats() {
			if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 && s.GetMemory().GetWorkingSetBytes().GetValue() > 0 {
				known++
			}
		}
		return f.complete("statistics", known)
	}
}

func (f *fleet) complete(what string, got int) error {
	if got != len(f.pods) {
		return fmt.Errorf("%d %s are listed of %d VM pods: %w", got, what, len(f.pods), errdefs.ErrUnavailable)
	}
	return nil
}

// memory is the resident memory of both daemons together, in MB.
func (f *fleet) memory() (float64, error) {
	const megabyte = 1e6
	var sum int64
	for _, daemon := range []string{node.VMRuntime, node.CRIProxy} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.node.Process(daemon).PID))
		if err != nil {
			return 0, fmt.Errorf("read memory of %s: %w", daemon, err)
		}
		resident, err := statusBytes(string(status), "VmRSS:")
		if err != nil {
			return 0, err
		}
		sum += resident
	}
	return float64(sum) / megabyte, nil
}

// restart tells vmruntime to end, starts it, and returns when it answers for each
// VM by itself: lists could come out of criproxy's memory.
func (f *fleet) restart(ctx context.Context) error {
	if err := f.node.Restart(ctx, node.VMRuntime); err != nil {
		return err
	}
	for _, id := range f.pods {
		if err := f.untilServed(ctx, id); err != nil {
			return err
		}
	}
	return errors.Join(f.lists(ctx)(), f.listStats(ctx)())
}

// untilServed repeats the question for a VM while criproxy has not found vmruntime again.
func (f *fleet) untilServed(ctx context.Context, id string) error {
	const interval = 10 * time.Millisecond
	again := time.NewTicker(interval)
	defer again.Stop()
	for {
		answer, err := f.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if state := answer.GetStatus().GetState(); err == nil && state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("after a restart of vmruntime, VM %s is %s: %w", id, state, errdefs.ErrUnavailable)
		}
		if status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
