//go:build e2e

package install

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/tests/cluster"
	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
)

// nodes are the cluster's.
func nodes() []*node.Node { return []*node.Node{shared.Node(), second} }

// pdb is the example of two VMs which are spread over nodes.
func pdb() string { return filepath.Join(shared.Node().Checkout(), "examples", "pdb.yaml") }

// testSecondNode: one more node is chosen, and the DaemonSet's pod there makes it one
// that runs VMs. The scheduler spreads VMs, which reach each other by their Service.
func testSecondNode(t *testing.T) {
	hasLabels(t, second, incapable)
	kubectl(t, "label", "node", second.Name(), cluster.NodeChoice)
	kubectl(t, "wait", "--for=jsonpath={.status.desiredNumberScheduled}=2", "-n", "ambipod", "daemonset/node", patience)
	kubectl(t, "-n", "ambipod", "rollout", "status", "daemonset/node", patience)
	for _, n := range nodes() {
		hasLabels(t, n, capable)
	}
	kubectl(t, "apply", "-f", pdb())
	frontsAre(t, shared.Node(), second)
	for _, vm := range fronts(t) {
		seesAll(t, vm, fronts(t))
	}
}

// fronts lists the pods of the example pdb.yaml.
func fronts(t *testing.T) []string {
	t.Helper()
	return strings.Fields(kubectl(t, "get", "pods", "-l", "app=front", "-o", "jsonpath={.items[*].metadata.name}"))
}

// frontsAre waits until the example's VMs, as many as nodes are given, are ready there
// and none is being deleted.
func frontsAre(t *testing.T, on ...*node.Node) {
	t.Helper()
	var want []string
	for _, n := range on {
		want = append(want, n.Name())
	}
	slices.Sort(want)
	eventually(t, fmt.Sprintf("VMs run on %q", want), func(ctx context.Context) error {
		var pods corev1.PodList
		if err := shared.Get(ctx, "/api/v1/namespaces/default/pods?labelSelector=app%3Dfront", &pods); err != nil {
			return err
		}
		var have []string
		for _, pod := range pods.Items {
			if pod.DeletionTimestamp != nil {
				return fmt.Errorf("%s is being deleted: %w", pod.Name, errdefs.ErrUnavailable)
			}
			if slices.ContainsFunc(pod.Status.Conditions, isReady) {
				have = append(have, pod.Spec.NodeName)
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			return fmt.Errorf("they are on %q: %w", have, errdefs.ErrUnavailable)
		}
		return nil
	})
}

func isReady(c corev1.PodCondition) bool {
	return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
}

// seesAll asks the Service of VMs from inside one until each of them has answered.
func seesAll(t *testing.T, client string, vms []string) {
	t.Helper()
	missing := map[string]bool{}
	for _, vm := range vms {
		missing[vm] = true
	}
	eventually(t, "all VMs answer "+client, func(ctx context.Context) error {
		page, err := shared.Kubectl(ctx, "exec", client, "--", "wget", "-q", "-O", "-", "http://front")
		if err != nil {
			return err
		}
		maps.DeleteFunc(missing, func(vm string, _ bool) bool { return strings.Contains(page, vm) })
		if len(missing) > 0 {
			return fmt.Errorf("no answer yet from %v: %w", missing, errdefs.ErrUnavailable)
		}
		return nil
	})
}

// daemons are the DaemonSet's pods, the oldest first, once there is one on each of so
// many nodes.
func daemons(t *testing.T, want int) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	eventually(t, fmt.Sprintf("%d pods are the DaemonSet's", want), func(ctx context.Context) error {
		pods = corev1.PodList{}
		err := shared.Get(ctx, "/api/v1/namespaces/ambipod/pods", &pods)
		if err == nil && len(pods.Items) != want {
			err = fmt.Errorf("there are %d: %w", len(pods.Items), errdefs.ErrUnavailable)
		}
		return err
	})
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	return pods.Items
}

// testRollOverNodes: new daemons come to one node after the other, and every VM stays.
func testRollOverNodes(t *testing.T) {
	before, former := lives(t, append(fronts(t), "vm")...), daemons(t, 2)
	become(t, "overlays/objects")
	rolled := daemons(t, 2)
	if rolled[0].Spec.NodeName == rolled[1].Spec.NodeName || slices.ContainsFunc(rolled, func(p corev1.Pod) bool {
		return p.UID == former[0].UID || p.UID == former[1].UID
	}) {
		t.Errorf("after the roll there are %s on %s and %s on %s", rolled[0].Name, rolled[0].Spec.NodeName, rolled[1].Name, rolled[1].Spec.NodeName)
	}
	if ready := readySince(t, rolled[0]); rolled[1].CreationTimestamp.Time.Before(ready) {
		t.Errorf("the daemons of the second node were replaced at %s, before those of the first were ready at %s", rolled[1].CreationTimestamp, ready)
	}
	liveOn(t, before)
	for _, n := range nodes() {
		hasLabels(t, n, capable)
	}
	// The overlay's right to read objects has come with the new daemons.
	kubectl(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/unmounted", "--timeout="+testTime.String())
	kubectl(t, "delete", "pod", "unmounted", "--now")
}

// testBadRoll: daemons that do not start come to one node alone, whose VMs go on, and
// are taken back.
func testBadRoll(t *testing.T) {
	before, former := lives(t, append(fronts(t), "vm")...), daemons(t, 2)
	kubectl(t, "-n", "ambipod", "set", "image", "daemonset/node", "vmruntime="+node.ContainerImage+"-of-no-tag")
	var bad corev1.Pod
	eventually(t, "the new image is missed", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := shared.Get(ctx, "/api/v1/namespaces/ambipod/pods", &pods); err != nil {
			return err
		}
		i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return slices.ContainsFunc(p.Status.ContainerStatuses, lacksImage) })
		if i < 0 {
			return fmt.Errorf("no daemon lacks its image: %w", errdefs.ErrUnavailable)
		}
		bad = pods.Items[i]
		return nil
	})
	for _, n := range nodes() {
		if n.Name() == bad.Spec.NodeName {
			hasLabels(t, n, incapable)
			continue
		}
		hasLabels(t, n, capable)
		for _, pod := range daemons(t, 2) {
			if pod.UID != bad.UID && (pod.Spec.NodeName != n.Name() || pod.UID != former[0].UID && pod.UID != former[1].UID) {
				t.Errorf("beside the bad daemons there are not the former ones but %s on %s", pod.Name, pod.Spec.NodeName)
			}
		}
	}
	kubectl(t, "-n", "ambipod", "rollout", "undo", "daemonset/node")
	kubectl(t, "-n", "ambipod", "rollout", "status", "daemonset/node", patience)
	for _, n := range nodes() {
		hasLabels(t, n, capable)
	}
	liveOn(t, before)
}

func lacksImage(s corev1.ContainerStatus) bool {
	return s.State.Waiting != nil && slices.Contains([]string{"ErrImagePull", "ImagePullBackOff"}, s.State.Waiting.Reason)
}

// readySince says when a pod became ready.
func readySince(t *testing.T, pod corev1.Pod) time.Time {
	t.Helper()
	i := slices.IndexFunc(pod.Status.Conditions, isReady)
	if i < 0 {
		t.Fatalf("pod %s is not ready: %v", pod.Name, pod.Status.Conditions)
	}
	return pod.Status.Conditions[i].LastTransitionTime.Time
}

// testDrain: VMs move to the other node, one at a time as their budget says.
func testDrain(t *testing.T) {
	first, other := shared.Node().Name(), second.Name()
	defer kubectl(t, "uncordon", first, other)
	kubectl(t, "drain", first, "--pod-selector=app=front", "--timeout="+testTime.String())
	frontsAre(t, second, second)

	// There is no other node to go to, so the second VM must stay.
	kubectl(t, "wait", "--for=jsonpath={.status.disruptionsAllowed}=1", "pdb/front", "--timeout="+testTime.String())
	_, err := shared.Kubectl(deadline(t), "drain", other, "--pod-selector=app=front", "--timeout=15s")
	if err == nil || !strings.Contains(err.Error(), "violate the pod's disruption budget") {
		t.Fatalf("drain of both VMs: %v, want the budget to forbid it", err)
	}
	kubectl(t, "wait", "--for=jsonpath={.status.currentHealthy}=1", "pdb/front", "--timeout="+testTime.String())
	frontsAre(t, second)

	kubectl(t, "uncordon", first)
	frontsAre(t, shared.Node(), second)
}

// testNodeWithout: one node is chosen no longer. It loses its labels and its daemons,
// but no VM, and the other node keeps all. Chosen again, it takes its VM over.
func testNodeWithout(t *testing.T) {
	before := lives(t, append(fronts(t), "vm")...)
	name, _, _ := strings.Cut(cluster.NodeChoice, "=")
	kubectl(t, "label", "node", second.Name(), name+"-")
	hasLabels(t, second, incapable)
	if left := daemons(t, 1); left[0].Spec.NodeName != shared.Node().Name() {
		t.Errorf("the only daemons are on %s", left[0].Spec.NodeName)
	}
	hasLabels(t, shared.Node(), capable)
	for vm := range before {
		answers(t, vm)
	}
	if out, err := apply(t, strings.ReplaceAll(elsewhere, "$NODE", second.Name())); err != nil {
		t.Fatal(out)
	}
	for pod, why := range map[string]string{
		"elsewhere": "didn't match Pod's node affinity/selector",
		"stranded":  "runtime vm does not answer at ",
	} {
		eventually(t, "an event says why "+pod+" does not run", func(ctx context.Context) error {
			return fixture.HasEvent(ctx, shared, "default", pod, why)
		})
	}
	kubectl(t, "delete", "pods", "elsewhere", "stranded", "--now")

	kubectl(t, "label", "node", second.Name(), cluster.NodeChoice)
	hasLabels(t, second, capable)
	daemons(t, 2)
	liveOn(t, before)
}

// elsewhere is a VM that may run on one node alone; one that is stranded was put there
// without asking the scheduler.
const elsewhere = `
apiVersion: v1
kind: Pod
metadata: {name: elsewhere}
spec:
  runtimeClassName: vm
  nodeSelector: {kubernetes.io/hostname: $NODE}
  containers: [{name: machine, image: vm.ambipod.io/tiny, resources: {limits: {memory: 128Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranded, annotations: {vm.ambipod.io/target-runtime: vm}}
spec:
  nodeName: $NODE
  containers: [{name: machine, image: vm.ambipod.io/tiny, resources: {limits: {memory: 128Mi}}}]
`
