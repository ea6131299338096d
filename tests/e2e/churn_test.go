//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

const (
	rounds = 20
	warmUp = 5 // rounds after which caches are filled and files have their size
)

// TestRoundsLeakNothing creates and removes a VM pod again and again.
func TestRoundsLeakNothing(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	var before footprint
	for round := 1; round <= rounds; round++ {
		oneRound(t, c)
		nothingLeft(t, n)
		if round == warmUp {
			before = measure(t, n)
		}
	}
	after := measure(t, n)
	t.Logf("after %d rounds: %+v; after %d: %+v", warmUp, before.counts, rounds, after.counts)
	for what, count := range after.counts {
		// Each round that leaked would count.
		if grown := count - before.counts[what]; grown >= rounds-warmUp {
			t.Errorf("%s grew from %d to %d in %d rounds", what, before.counts[what], count, rounds-warmUp)
		}
	}
	for path, size := range after.databases {
		if size > before.databases[path] {
			t.Errorf("%s grew from %d to %d bytes in %d rounds", path, before.databases[path], size, rounds-warmUp)
		}
	}
	for path := range after.files {
		if !before.files[path] {
			t.Errorf("file %s appeared after round %d and has stayed", path, warmUp)
		}
	}
}

func oneRound(t *testing.T, c client) {
	t.Helper()
	p := &pod{client: c, config: podConfig(t, c.n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	defer p.removeAtEnd(t)
	sandbox, err := c.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: vmKind.handler})
	if err != nil {
		t.Fatal(err)
	}
	p.sandboxID = sandbox.GetPodSandboxId()
	p.create(t)
	p.start(t)
	eventually(t, "the VM runs", func(ctx context.Context) error {
		status, err := p.status(ctx)
		if err == nil && status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			err = fmt.Errorf("its state is %s", status.GetState())
		}
		return err
	})
}

// footprint is what could grow.
type footprint struct {
	counts    map[string]int   // descriptors and threads of daemons
	databases map[string]int64 // sizes of bolt files
	files     map[string]bool  // all below the node's root
}

func measure(t *testing.T, n *node.Node) footprint {
	t.Helper()
	f := footprint{counts: map[string]int{}, databases: map[string]int64{}, files: map[string]bool{}}
	for _, daemon := range []string{node.VMRuntime, node.CRIProxy, node.Libvirtd, node.Virtlogd} {
		for _, what := range []string{"fd", "task"} {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", n.Process(daemon).PID, what))
			if err != nil {
				t.Fatal(err)
			}
			f.counts[daemon+" "+what] = len(entries)
		}
	}
	err := filepath.WalkDir(n.Root(), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		f.files[path] = true
		if !strings.HasSuffix(path, ".db") || !strings.HasPrefix(path, n.VMStateDir()) {
			return nil
		}
		info, err := d.Info()
		f.databases[path] = info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.databases) == 0 {
		t.Fatalf("vmruntime has no database below %s", n.VMStateDir())
	}
	return f
}
