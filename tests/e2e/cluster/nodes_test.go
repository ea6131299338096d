//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
)

// TestDrain has a second node with Ambipod, over which VMs are spread and to which they
// move, one at a time as their budget says. It comes before the parallel tests, whose
// pods must stay on the cluster's first node.
func TestDrain(t *testing.T) {
	first, second := shared.Node().Name(), secondNode(t)
	s := newSpace(t)
	s.apply(t, "pdb.yaml")
	s.rolledOut(t, "deployment/front")
	s.areOn(t, first, second)
	for _, vm := range s.names(t, "pods", "app=front") {
		s.seesAll(t, vm, "front")
	}

	t.Cleanup(func() { atEnd(t, "uncordon", first) })
	kubectl(t, "drain", first, "--pod-selector=app=front", "--timeout="+testTime.String())
	s.rolledOut(t, "deployment/front")
	s.areOn(t, second, second)

	// There is no other node to go to, so the second VM must stay.
	s.wait(t, "jsonpath={.status.disruptionsAllowed}=1", "pdb/front")
	_, err := shared.Kubectl(deadline(t), "drain", second, "--pod-selector=app=front", "--timeout=15s")
	if err == nil || !strings.Contains(err.Error(), "violate the pod's disruption budget") {
		t.Fatalf("drain of both VMs: %v, want the budget to forbid it", err)
	}
	s.wait(t, "jsonpath={.status.currentHealthy}=1", "pdb/front")
	s.areOn(t, second)

	kubectl(t, "uncordon", first)
	s.rolledOut(t, "deployment/front")
	s.areOn(t, first, second)
}

// secondNode makes a node with Ambipod a member of the cluster until the test ends.
func secondNode(t *testing.T) string {
	t.Helper()
	n, err := shared.AddNode(deadline(t), node.Config{
		Checkout: shared.Node().Checkout(), Name: fmt.Sprintf("e2e%d-second", os.Getpid()),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fixture.TakeDown(n, "second", t.Failed()); err != nil {
			t.Error(err)
		}
		atEnd(t, "delete", "node", n.Name())
	})
	return n.Name()
}

// areOn waits until the running VMs of app=front are on these nodes.
func (s space) areOn(t *testing.T, nodes ...string) {
	t.Helper()
	slices.Sort(nodes)
	eventually(t, fmt.Sprintf("VMs run on %q", nodes), func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "--namespace", s.name, "get", "pods", "-l", "app=front", "--field-selector=status.phase=Running",
			"-o", "jsonpath={.items[*].spec.nodeName}")
		have := strings.Fields(out)
		slices.Sort(have)
		if err == nil && !slices.Equal(have, nodes) {
			err = fmt.Errorf("they are on %q: %w", have, errdefs.ErrUnavailable)
		}
		return err
	})
}

// seesAll asks a Service from inside a VM until each VM with its name for app has
// answered.
func (s space) seesAll(t *testing.T, client, service string) {
	t.Helper()
	missing := map[string]bool{}
	for _, pod := range s.names(t, "pods", "app="+service) {
		missing[strings.TrimPrefix(pod, "pod/")] = true
	}
	eventually(t, "all VMs answer "+client, func(ctx context.Context) error {
		page, err := shared.Kubectl(ctx, "--namespace", s.name, "exec", client, "--", "wget", "-q", "-O", "-", "http://"+service)
		if err != nil {
			return err
		}
		maps.DeleteFunc(missing, func(pod string, _ bool) bool { return strings.Contains(page, pod) })
		if len(missing) > 0 {
			return fmt.Errorf("no answer yet from %v: %w", missing, errdefs.ErrUnavailable)
		}
		return nil
	})
}

// TestVMsKeepOffPlainNodes has a node without Ambipod beside the other: VM pods do
// not go there, and one that somebody puts there says why it does not run.
func TestVMsKeepOffPlainNodes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	if got := kubectl(t, "get", "nodes", "-l", "vm.ambipod.io/capable=true", "-o", "name"); got != "node/"+shared.Node().Name()+"\n" {
		t.Errorf("nodes labelled as capable: %q, want only %s", got, shared.Node().Name())
	}
	t.Run("a container runs there", func(t *testing.T) {
		s.applyText(t, pinned("container", "image: busybox\n      command: [sleep, '3600']", "nodeName"))
		s.wait(t, "condition=Ready", "pod/container")
		s.kubectl(t, "delete", "pod/container", "--grace-period=1")
	})
	t.Run("scheduler", func(t *testing.T) {
		s.applyText(t, pinned("scheduled", "image: vm.ambipod.io/tiny", "nodeSelector", "runtimeClassName: vm"))
		s.says(t, "pod/scheduled", "didn't match Pod's node affinity/selector")
	})
	t.Run("kubelet", func(t *testing.T) {
		s.applyText(t, pinned("bound", "image: vm.ambipod.io/tiny", "nodeName", "runtimeClassName: vm"))
		s.wait(t, "jsonpath={.status.reason}=NodeAffinity", "pod/bound")
	})
	t.Run("containerd", func(t *testing.T) {
		s.applyText(t, pinned("forgotten", "image: vm.ambipod.io/tiny", "nodeName"))
		s.says(t, "pod/forgotten", `Failed to pull image "vm.ambipod.io/tiny"`)
	})
	t.Run("admission", func(t *testing.T) {
		cmd, err := shared.Command(deadline(t), "--namespace", s.name, "run", "hasty", "--image=vm.ambipod.io/tiny", "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		said, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(said), `set runtimeClassName to "vm"`) {
			t.Errorf("a VM that may go anywhere: %v: %s", err, said)
		}
	})
}

// pinned is a pod on the plain node, by its node's name or by a selector.
func pinned(name, container, by string, fields ...string) string {
	if by == "nodeSelector" {
		fields = append(fields, "nodeSelector: {kubernetes.io/hostname: "+plain.Name()+"}")
	} else {
		fields = append(fields, "nodeName: "+plain.Name())
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  %s
  containers:
    - name: only
      %s
      resources: {requests: {cpu: 50m}, limits: {memory: 128Mi}}
`, name, strings.Join(fields, "\n  "), container)
}
