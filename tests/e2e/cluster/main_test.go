//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/cluster"
	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
)

// What these tests have in common with those of the packages beside.
const testTime, downTime = fixture.TestTime, fixture.DownTime

var deadline, eventually = fixture.Deadline, fixture.Eventually

// shared is the package's cluster, and plain its node without Ambipod.
var (
	shared *cluster.Cluster
	plain  *node.Node
)

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	top, err := filepath.Abs("../../..")
	if err != nil {
		return fail(err)
	}
	if err := start(top); err != nil {
		return fail(err)
	}
	code := m.Run()
	err = errors.Join(fixture.TakeDown(plain, "plain", code != 0), fixture.TakeDown(shared.Node(), "cluster", code != 0),
		storage.Close(context.Background()))
	if err != nil {
		return fail(err)
	}
	return code
}

func start(top string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	defer cancel()
	name := fmt.Sprintf("e2e%d-", os.Getpid())
	shared, err = cluster.Start(ctx, node.Config{Checkout: top, Name: name + "cluster"})
	if err != nil {
		return err
	}
	if err := startStorage(ctx); err != nil {
		return errors.Join(err, fixture.TakeDown(shared.Node(), "cluster", true))
	}
	plain, err = shared.AddPlainNode(ctx, node.Config{Checkout: top, Name: name + "plain"})
	if err != nil {
		return errors.Join(err, fixture.TakeDown(shared.Node(), "cluster", true), storage.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// space is a namespace of one test, which goes with all in it at the test's end.
type space struct{ name string }

func newSpace(t *testing.T) space {
	t.Helper()
	s := space{spaceName(t)}
	kubectl(t, "create", "namespace", s.name)
	kubectl(t, "wait", "--for=create", "serviceaccount/default", "--namespace", s.name, "--timeout=60s")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTime)
		defer cancel()
		if t.Failed() {
			seen, _ := shared.Kubectl(ctx, "describe", "pods", "--namespace", s.name)
			t.Log(seen)
		}
		if _, err := shared.Kubectl(ctx, "delete", "namespace", s.name); err != nil {
			t.Error(err)
		}
	})
	return s
}

func spaceName(t *testing.T) string { return strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) }

// kubectl runs kubectl in the test's namespace.
func (s space) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return kubectl(t, append([]string{"--namespace", s.name}, args...)...)
}

// apply applies a file of examples/ as it is.
func (s space) apply(t *testing.T, example string) {
	t.Helper()
	s.kubectl(t, "apply", "-f", examplePath(example))
}

func examplePath(name string) string {
	return filepath.Join(shared.Node().Checkout(), "examples", name)
}

// applyText applies a manifest that is no example.
func (s space) applyText(t *testing.T, manifest string) {
	t.Helper()
	s.kubectl(t, "apply", "-f", fixture.Manifest(t, manifest))
}

// rolledOut waits until a workload has as many ready pods as it wants.
func (s space) rolledOut(t *testing.T, workload string) {
	t.Helper()
	s.kubectl(t, "rollout", "status", workload, "--timeout="+testTime.String())
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := shared.Kubectl(deadline(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// atEnd runs kubectl when the test is over and its own time is up.
func atEnd(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	if _, err := shared.Kubectl(ctx, args...); err != nil {
		t.Error(err)
	}
}
