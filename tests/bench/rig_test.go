package main

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

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
