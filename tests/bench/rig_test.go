package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

func TestBackendServesUntilItsInputEnds(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "b.sock")
	input, starter := io.Pipe()
	served := make(chan error, 1)
	const pods = 3
	go func() { served <- serveBackend(t.Context(), newBackend("one", pods), socket, input) }()
	if err := untilAnswers(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	conn, err := node.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := listContainers(t.Context(), conn, pods)(); err != nil {
		t.Error(err)
	}
	if err := listContainers(t.Context(), conn, pods+1)(); err == nil {
		t.Error("a list of the wrong length was accepted")
	}
	if err := noop(t.Context(), conn)(); err != nil {
		t.Error(err)
	}
	if err := idleKubelet(t.Context(), conn, time.Second); err != nil {
		t.Error(err)
	}
	if err := starter.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if c, err := new(net.Dialer).DialContext(t.Context(), "unix", socket); err == nil {
		c.Close()
		t.Error("the backend still listens")
	}
}

func TestRelaysPassAnswersAndErrorsOn(t *testing.T) {
	for name, serve := range map[string]func(ctx context.Context, backend, socket string, stdin io.Reader) error{
		"calls": serveRelay, "bytes": serveBytes,
	} {
		t.Run(name, func(t *testing.T) { relayPassesOn(t, serve) })
	}
}

func relayPassesOn(t *testing.T, serve func(ctx context.Context, backend, socket string, stdin io.Reader) error) {
	dir := t.TempDir()
	behind, socket := filepath.Join(dir, "b.sock"), filepath.Join(dir, "r.sock")
	inputs, starters := [2]*io.PipeReader{}, [2]*io.PipeWriter{}
	for i := range inputs {
		inputs[i], starters[i] = io.Pipe()
	}
	served := make(chan error, 2)
	const pods = 3
	go func() { served <- serveBackend(t.Context(), newBackend("one", pods), behind, inputs[0]) }()
	go func() { served <- serve(t.Context(), behind, socket, inputs[1]) }()
	if err := untilAnswers(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	conn, err := node.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := listContainers(t.Context(), conn, pods)(); err != nil {
		t.Error(err)
	}
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Attach(t.Context(), &runtimeapi.AttachRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a method that the backend lacks gave %v", err)
	}
	for _, starter := range starters {
		starter.Close()
	}
	for range starters {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

func TestBackendsHaveDifferentIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"one", "two"} {
		for _, c := range newBackend(name, 2).containers {
			for _, id := range []string{c.GetId(), c.GetPodSandboxId()} {
				if seen[id] || len(id) != 64 {
					t.Errorf("ID %q is there twice or has not 64 digits", id)
				}
				seen[id] = true
			}
		}
	}
	if state := newBackend("one", 1).containers[0].GetState(); state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container is %s", state)
	}
}
