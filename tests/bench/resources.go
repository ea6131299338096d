package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Targets of the issue.
const (
	idleMemory limit = 30e6
	busyMemory limit = 45e6
	idleCPU    limit = 1 // percent of a core
)

// measureResources looks at criproxy's memory and CPU time.
func measureResources(ctx context.Context, e environment) (section, error) {
	s := section{Name: "resources", Title: "What criproxy itself needs", Base: "-", Ours: "criproxy"}
	memory, err := measureMemory(ctx, e)
	if err != nil {
		return s, fmt.Errorf("measure memory: %w", err)
	}
	cpu, err := measureCPU(ctx, e)
	if err != nil {
		return s, fmt.Errorf("measure CPU time: %w", err)
	}
	s.Rows = append(memory, cpu)
	return s, nil
}

func measureMemory(ctx context.Context, e environment) (_ []row, err error) {
	r, err := startRig(ctx, e.criproxy, listItems, listVMItems)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.stop(ctx)) }()
	idle, _, err := r.memory()
	if err != nil {
		return nil, err
	}
	const (
		calls   = 100000
		lists   = 200
		callers = 4
	)
	var group errgroup.Group
	for range callers {
		group.Go(func() error {
			return errors.Join(
				repeat(calls/callers, noop(ctx, r.proxied)),
				repeat(lists/callers, listContainers(ctx, r.proxied, listItems+listVMItems)))
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	busy, peak, err := r.memory()
	after := fmt.Sprintf("resident memory after %d calls and %d lists of %d items by %d callers", calls, lists, listItems+listVMItems, callers)
	return []row{
		memoryRow("resident memory, idle", idle, idleMemory),
		memoryRow(after, busy, busyMemory),
		memoryRow("the same, highest", peak, 0),
	}, err
}

func memoryRow(what string, bytes int64, most limit) row {
	const megabyte = 1e6
	value := float64(bytes) / megabyte
	return (most / megabyte).check(row{What: what, Ours: fmt.Sprintf("%.1f MB", value), Samples: 1}, value, "%.0f MB")
}

func repeat(n int, call func() error) error {
	for range n {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

// measureCPU makes the calls of a kubelet that has nothing to do.
func measureCPU(ctx context.Context, e environment) (_ row, err error) {
	const (
		pods   = 90
		vms    = 10
		lasts  = time.Minute
		warmUp = 5 * time.Second
	)
	r, err := startRig(ctx, e.criproxy, pods, vms)
	if err != nil {
		return row{}, err
	}
	defer func() { err = errors.Join(err, r.stop(ctx)) }()
	if err := idleKubelet(ctx, r.proxied, warmUp); err != nil {
		return row{}, err
	}
	began := time.Now()
	before, err := r.cpuTime()
	if err != nil {
		return row{}, err
	}
	if err := idleKubelet(ctx, r.proxied, lasts); err != nil {
		return row{}, err
	}
	after, err := r.cpuTime()
	if err != nil {
		return row{}, err
	}
	const percent = 100
	share := percent * float64(after-before) / float64(time.Since(began))
	what := fmt.Sprintf("CPU time during %s of an idle kubelet's calls, %d containers and %d VMs", lasts, pods, vms)
	return idleCPU.check(row{What: what, Ours: fmt.Sprintf("%.2f %% of a core", share), Samples: 1}, share, "%.0f %% of a core"), nil
}

// idleKubelet calls what kubelet 1.37 calls while its pods are well, at its
// intervals: the pod lifecycle generator's lists every second, housekeeping's
// every 2 s, Status every 5 s, statistics and file systems every 10 s (eviction),
// images every 30 s.
func idleKubelet(ctx context.Context, conn *grpc.ClientConn, lasts time.Duration) error {
	calls := []struct {
		everySeconds int
		do           func() error
	}{
		{1, lists(ctx, conn)},
		{2, lists(ctx, conn)},
		{5, runtimeStatus(ctx, conn)},
		{10, statistics(ctx, conn)},
		{30, images(ctx, conn)},
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for i := range int(lasts / time.Second) {
		for _, call := range calls {
			if i%call.everySeconds != 0 {
				continue
			}
			if err := call.do(); err != nil {
				return err
			}
		}
		select {
		case <-second.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func lists(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	return func() error {
		_, sandboxes := cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		_, containers := cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return errors.Join(sandboxes, containers)
	}
}

func runtimeStatus(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	return func() error {
		_, err := cri.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	}
}

func statistics(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri, images := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return func() error {
		_, stats := cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		_, filesystems := images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		return errors.Join(stats, filesystems)
	}
}

func images(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri := runtimeapi.NewImageServiceClient(conn)
	return func() error {
		_, err := cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		return err
	}
}
