package proxy

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Benchmarks compare a call through the proxy with the same call to the runtime
// itself, alternating in one run, and report the ratio beside both times. Client,
// proxy and runtimes share one process here; make bench measures separate ones.

// BenchmarkNoop is the smallest unary call.
func BenchmarkNoop(b *testing.B) {
	s := newSetup(b)
	sideBySide(b, s, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
		_, err := c.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
}

// BenchmarkContainerStatus is a call that is routed by an ID.
func BenchmarkContainerStatus(b *testing.B) {
	s := newSetup(b)
	fill(s.def, 1)
	request := &runtimeapi.ContainerStatusRequest{ContainerId: s.def.containers[0].GetId()}
	sideBySide(b, s, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
		_, err := c.ContainerStatus(ctx, request)
		return err
	})
}

// BenchmarkListContainers merges 1,000 containers of the default with 50 VMs.
// The direct call gets the 1,000 only.
func BenchmarkListContainers(b *testing.B) {
	s := newSetup(b)
	fill(s.def, 1000)
	fill(s.vm, 50)
	sideBySide(b, s, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
		_, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err
	})
}

// BenchmarkBareProxy is Noop through the least that grpc-go can do: receive bytes
// and invoke with them. It is the floor for what the proxy may cost.
func BenchmarkBareProxy(b *testing.B) {
	s := newSetup(b)
	def := s.backend("containerd")
	server := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.NumStreamWorkers(streamWorkers))
	handler := func(_ any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request, answer frame
		if err := receive(&request); err != nil {
			return nil, err
		}
		err := def.conn.Invoke(ctx, "/runtime.v1.RuntimeService/Version", &request, &answer)
		return &answer, err
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "runtime.v1.RuntimeService",
		Methods:     []grpc.MethodDesc{{MethodName: "Version", Handler: handler}},
	}, nil)
	socket := s.dir + "/bare.sock"
	listener, err := Listen(b.Context(), socket)
	if err != nil {
		b.Fatal(err)
	}
	go server.Serve(listener)
	defer server.Stop()
	conn := dial(b, socket)
	defer conn.Close()
	s.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(conn)
	sideBySide(b, s, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
		_, err := c.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
}

// fill gives a runtime containers of realistic size, about 1.5 kB each.
func fill(r *testRuntime, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		labels := map[string]string{}
		for k := range 8 {
			labels[fmt.Sprintf("io.kubernetes.container.label-%d", k)] = fmt.Sprintf("value-%d-%d-some-text", i, k)
		}
		annotations := map[string]string{}
		for k := range 8 {
			annotations[fmt.Sprintf("io.kubernetes.container.annotation-%d", k)] = fmt.Sprintf("%064d", k)
		}
		id := r.id()
		r.containers = append(r.containers, &runtimeapi.Container{
			Id: id, PodSandboxId: hexID(i), Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", i)},
			Image: &runtimeapi.ImageSpec{Image: hexID(7), UserSpecifiedImage: "docker.io/library/busybox:1.36"}, ImageRef: hexID(7), ImageId: hexID(7),
			State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: time.Now().UnixNano(), Labels: labels, Annotations: annotations,
		})
	}
}

// sideBySide alternates direct and proxied calls and reports medians, 99th
// percentiles and their ratios.
func sideBySide(b *testing.B, s *setup, call func(context.Context, runtimeapi.RuntimeServiceClient) error) {
	b.Helper()
	directConn := dial(b, s.def.socket)
	defer directConn.Close()
	clients := []runtimeapi.RuntimeServiceClient{runtimeapi.NewRuntimeServiceClient(directConn), s.RuntimeServiceClient}
	times := [2][]time.Duration{}
	for range 50 { // connections, pools and windows settle
		for _, c := range clients {
			if err := call(b.Context(), c); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		for i, c := range clients {
			started := time.Now()
			if err := call(b.Context(), c); err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], time.Since(started))
		}
	}
	direct, proxied := allocations(b, clients[0], call), allocations(b, clients[1], call)
	b.ReportMetric(proxied-direct, "proxy-allocs/op")
	for i := range times {
		slices.Sort(times[i])
	}
	for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		direct, proxied := quantile(times[0], q), quantile(times[1], q)
		b.ReportMetric(direct.Seconds()*1e6, name+"-direct-µs")
		b.ReportMetric(proxied.Seconds()*1e6, name+"-proxied-µs")
		b.ReportMetric(float64(proxied)/float64(direct), name+"-ratio")
	}
}

// allocations counts what one call allocates in client, proxy and runtime.
func allocations(b *testing.B, c runtimeapi.RuntimeServiceClient, call func(context.Context, runtimeapi.RuntimeServiceClient) error) float64 {
	b.Helper()
	return testing.AllocsPerRun(100, func() {
		if err := call(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	})
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}
