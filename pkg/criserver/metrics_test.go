package criserver

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/console"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// serverWithRecords is a Server that has records and nothing else.
func serverWithRecords(t *testing.T) *Server {
	t.Helper()
	records, err := metadata.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { records.Close() })
	commands := guestexec.New(guestexec.Options{})
	t.Cleanup(commands.Close)
	return &Server{
		Options: Options{Records: records}, counters: newCounters(),
		access: access{commands: commands, consoles: console.NewAttachments(nil)},
	}
}

func TestCallMetrics(t *testing.T) {
	calls := NewCallMetrics()
	rpc := grpc.NewServer(calls.Interceptors()...)
	runtimeapi.RegisterRuntimeServiceServer(rpc, serverWithRecords(t))
	listener := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(listener) }()
	t.Cleanup(func() { rpc.Stop(); <-served })
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := runtimeapi.NewRuntimeServiceClient(conn)
	for range 2 {
		if _, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "none"})
	if err == nil {
		t.Error("a VM that is not there has a status")
	}
	if err := conn.Invoke(t.Context(), "/runtime.v1.RuntimeService/MadeUp", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{}); err == nil {
		t.Error("a made-up method is answered")
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(calls)
	want := `
# HELP ambipod_calls_in_flight CRI calls that are not answered yet.
# TYPE ambipod_calls_in_flight gauge
ambipod_calls_in_flight{method="ContainerStatus"} 0
ambipod_calls_in_flight{method="Version"} 0
# HELP ambipod_calls_total Answered CRI calls, by gRPC code.
# TYPE ambipod_calls_total counter
ambipod_calls_total{code="NotFound",method="ContainerStatus"} 1
ambipod_calls_total{code="OK",method="Version"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "ambipod_calls_in_flight", "ambipod_calls_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(calls, "ambipod_call_seconds"); n != 2 {
		t.Errorf("%d methods have times, want 2", n)
	}
}

func TestCollector(t *testing.T) {
	s := serverWithRecords(t)
	now := time.Now()
	for id, c := range map[string]metadata.Container{
		"a": {}, "b": {StartedAt: now}, "c": {StartedAt: now}, "d": {StartedAt: now, FinishedAt: now},
	} {
		c.ID, c.SandboxID = strings.Repeat(id, 64), strings.Repeat("e", 64)
		if err := s.Records.Containers.Create(c.ID, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Records.Sandboxes.Create(strings.Repeat("e", 64), metadata.Sandbox{ID: strings.Repeat("e", 64), State: metadata.SandboxReady}); err != nil {
		t.Fatal(err)
	}
	s.counters.recover("vm", nil)
	s.counters.recover("vm", context.Canceled)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Collector())
	want := `
# HELP ambipod_console_clients Clients that are attached to consoles.
# TYPE ambipod_console_clients gauge
ambipod_console_clients 0
# HELP ambipod_console_dropped_bytes_total Console output that attached clients were too slow for.
# TYPE ambipod_console_dropped_bytes_total counter
ambipod_console_dropped_bytes_total 0
# HELP ambipod_console_log_gaps_total Times that console output was rotated away before it could be copied to a pod's log.
# TYPE ambipod_console_log_gaps_total counter
ambipod_console_log_gaps_total 0
# HELP ambipod_exec_commands Commands that run in VMs.
# TYPE ambipod_exec_commands gauge
ambipod_exec_commands 0
# HELP ambipod_exec_commands_total Commands that were begun in VMs.
# TYPE ambipod_exec_commands_total counter
ambipod_exec_commands_total 0
# HELP ambipod_exec_sessions VMs in which the helper for commands runs, or is being started.
# TYPE ambipod_exec_sessions gauge
ambipod_exec_sessions 0
# HELP ambipod_guest_events_total What guests did by themselves: rebooted, or crashed by a kernel panic.
# TYPE ambipod_guest_events_total counter
ambipod_guest_events_total{event="crashed"} 0
ambipod_guest_events_total{event="rebooted"} 0
# HELP ambipod_orphaned_domains_removed_total Domains with our mark but without a record that were removed.
# TYPE ambipod_orphaned_domains_removed_total counter
ambipod_orphaned_domains_removed_total 0
# HELP ambipod_recovered_total Sandboxes and VMs that were brought to order at the start, by outcome.
# TYPE ambipod_recovered_total counter
ambipod_recovered_total{object="sandbox",outcome="failed"} 0
ambipod_recovered_total{object="sandbox",outcome="ok"} 0
ambipod_recovered_total{object="vm",outcome="failed"} 1
ambipod_recovered_total{object="vm",outcome="ok"} 1
# HELP ambipod_sandboxes Sandboxes by state.
# TYPE ambipod_sandboxes gauge
ambipod_sandboxes{state="creating"} 0
ambipod_sandboxes{state="ready"} 1
ambipod_sandboxes{state="stopped"} 0
# HELP ambipod_vms VMs by state.
# TYPE ambipod_vms gauge
ambipod_vms{state="created"} 1
ambipod_vms{state="exited"} 1
ambipod_vms{state="running"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	// Records that cannot be read must not hide the rest.
	if err := s.Records.Close(); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err == nil || len(families) == 0 {
		t.Errorf("with a closed database: %d families, %v", len(families), err)
	}
}
