package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The lists of the table.
const (
	listItems   = 1000
	listVMItems = 50
)

// noop asks for a new log of a container that the default backend owns. That changes
// nothing in any list, which criproxy would have to remember.
func noop(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	request := &runtimeapi.ReopenContainerLogRequest{ContainerId: hexID("some container")}
	return func() error {
		_, err := cri.ReopenContainerLog(ctx, request)
		return err
	}
}

// version calls Version, which carries no ID.
func version(ctx context.Context, conn *grpc.ClientConn) func() error {
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	return func() error {
		_, err := cri.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	}
}

// listContainers lists all and checks how many there are.
func listContainers(ctx context.Context, conn *grpc.ClientConn, want int) func() error {
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	return func() error {
		answer, err := cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if got := len(answer.GetContainers()); err == nil && got != want {
			return fmt.Errorf("the list has %d containers, want %d", got, want) //nolint:err113 // for people
		}
		return err
	}
}

// measureCalls compares calls to a backend with the same calls through criproxy.
func measureCalls(ctx context.Context, e environment) (_ section, err error) {
	s := section{Name: "calls", Title: "Calls: a plain Go gRPC server, directly and through criproxy", Base: "direct", Ours: "criproxy"}
	r, err := startRig(ctx, e.criproxy, listItems, listVMItems)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, r.stop(ctx)) }()
	const (
		warmUp    = 50
		noops     = 6000
		lists     = 200
		oneAtMost = limit(1.20)
		twoAtMost = limit(2.0)
	)
	what := fmt.Sprintf("ListContainers, %d items; through criproxy + %d of the VM backend", listItems, listVMItems)
	p, err := alternate(warmUp, lists, listContainers(ctx, r.direct, listItems), listContainers(ctx, r.proxied, listItems+listVMItems))
	if err != nil {
		return s, fmt.Errorf("measure ListContainers: %w", err)
	}
	s.Rows = append(s.Rows, ratioRow(what+", p50", p.at(0.5), oneAtMost), ratioRow("the same, p90", p.at(0.9), 0))
	for _, c := range []struct {
		what string
		n    int
		call func(context.Context, *grpc.ClientConn) func() error
	}{{"call that does nothing, with an ID (ReopenContainerLog)", noops, noop}, {"Version", noops / 3, version}} {
		took, err := inTurn(warmUp, c.n, c.call(ctx, r.direct), c.call(ctx, r.proxied), c.call(ctx, r.relayed), c.call(ctx, r.copied))
		if err != nil {
			return s, fmt.Errorf("measure %s: %w", c.what, err)
		}
		for _, row := range []struct {
			what   string
			took   []time.Duration
			atMost limit
		}{
			{c.what, took[1], twoAtMost},
			{"the same through a bare grpc-go relay instead of criproxy", took[2], 0},
			{"the same through a relay that only copies bytes", took[3], 0},
		} {
			p := pair{took[0], row.took}
			s.Rows = append(s.Rows, ratioRow(row.what+", p50", p.at(0.5), row.atMost), ratioRow("the same, p99", p.at(0.99), row.atMost))
		}
	}
	return s, nil
}
