//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// kills is how often each runtime behind criproxy is killed.
const kills = 10

// TestPodsOutliveTenKillsOfEachRuntime kills containerd and vmruntime again and again
// under a kubelet that goes on looking at its pods: no container is restarted, no VM
// boots again, and criproxy's lists are complete at every moment.
func TestPodsOutliveTenKillsOfEachRuntime(t *testing.T) {
	n := kubeletNode(t)
	apply(t, n, examplePod(t, "container-pod.yaml", "kills-container", node.ContainerImage))
	apply(t, n, examplePod(t, "vm-pod.yaml", "kills-vm", node.VMImage))
	before := map[string]*corev1.Pod{}
	for daemon, pod := range map[string]string{node.Containerd: "kills-container", node.VMRuntime: "kills-vm"} {
		before[daemon] = waitRunning(t, n, pod)
	}
	vm := before[node.VMRuntime]
	waitPage(t, vm, vm.Name)
	qemu := qemuOf(t, n)
	began := time.Now()
	for i := range kills {
		for daemon, owned := range before {
			if err := n.Kill(deadline(t), daemon); err != nil {
				t.Fatal(err)
			}
			relistsWithBoth(t, n, before)
			if err := n.StartDaemon(deadline(t), daemon); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			waitServed(t, n, owned)
			t.Logf("kill %d of %s: its pod is served %s after its return", i+1, daemon, time.Since(back).Round(time.Millisecond))
			if !qemu.Alive() {
				t.Fatalf("the VM's QEMU, process %d, ended after kill %d of %s", qemu.PID, i+1, daemon)
			}
		}
	}
	waitRelists(t, n, "")
	t.Logf("%d kills of each runtime took %s", kills, time.Since(began).Round(time.Second))
	for _, pod := range before {
		samePod(t, n, pod)
		waitPage(t, pod, map[bool]string{true: vm.Name, false: "container"}[pod == vm])
	}
	if now := qemuOf(t, n); now != qemu {
		t.Errorf("the VM's QEMU was %+v and is %+v", qemu, now)
	}
	for _, name := range []string{"kills-container", "kills-vm"} {
		if err := n.Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, n)
}

// containerOf is the ID of the pod's only container, as the CRI knows it.
func containerOf(pod *corev1.Pod) string {
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	return id
}

// relistsWithBoth waits until kubelet has looked at its pods once more, and checks
// that criproxy lists the containers of all of them as running meanwhile.
func relistsWithBoth(t *testing.T, n *node.Node, pods map[string]*corev1.Pod) {
	t.Helper()
	c := dial(t, n)
	first := -1
	eventually(t, "kubelet has listed its pods again", func(ctx context.Context) error {
		list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Errorf("list containers while a runtime is away: %v", err)
		}
		for daemon, pod := range pods {
			if !slices.ContainsFunc(list.GetContainers(), func(c *runtimeapi.Container) bool {
				return c.GetId() == containerOf(pod) && c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
			}) {
				t.Errorf("the container of %s is not running in the list %v", daemon, list.GetContainers())
			}
		}
		count, err := relistCount(ctx, n)
		if err != nil {
			return err
		}
		if first < 0 {
			first = count
		}
		if count == first {
			return fmt.Errorf("it has listed them %d times", count)
		}
		return nil
	})
}

// waitServed waits until criproxy passes calls on to the runtime that has the pod,
// and checks that the container is the one that it was.
func waitServed(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	c := dial(t, n)
	eventually(t, "the container of "+pod.Name+" is served", func(ctx context.Context) error {
		answer, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: containerOf(pod)})
		if err != nil {
			return err
		}
		if s := answer.GetStatus(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetMetadata().GetAttempt() != 0 {
			return fmt.Errorf("its status is %v", s)
		}
		return nil
	})
}
