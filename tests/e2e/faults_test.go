//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

// relists is how often kubelet looks at all pods before a test believes that it
// does nothing about them: the first look may have begun earlier, and what the second
// makes it do is done at the third.
const relists = 3

// TestPodsOutliveDaemons ends each daemon in both ways while kubelet watches, and
// then asks the restarted ones to manage the VM that they found.
func TestPodsOutliveDaemons(t *testing.T) {
	n := kubeletNode(t)
	apply(t, n, examplePod(t, "container-pod.yaml", "outlive-container", node.ContainerImage))
	machine := examplePod(t, "vm-pod.yaml", "outlive-vm", node.VMImage)
	machine.Spec.RestartPolicy = corev1.RestartPolicyNever
	apply(t, n, machine)
	container, vm := waitRunning(t, n, "outlive-container"), waitRunning(t, n, "outlive-vm")
	waitPage(t, vm, vm.Name)
	qemu := qemuOf(t, n)

	for _, daemon := range []string{node.VMRuntime, node.CRIProxy, node.Libvirtd, node.Containerd, node.Kubelet} {
		for _, way := range []struct {
			name string
			end  func(context.Context, string) error
		}{{"SIGTERM", n.Terminate}, {"SIGKILL", n.Kill}} {
			t.Run(daemon+" "+way.name, func(t *testing.T) {
				if err := way.end(deadline(t), daemon); err != nil {
					t.Fatal(err)
				}
				waitRelists(t, n, daemon)
				if !qemu.Alive() {
					t.Fatalf("the VM's QEMU ended with %s", daemon)
				}
				waitPage(t, vm, vm.Name)
				if err := n.StartDaemon(deadline(t), daemon); err != nil {
					t.Fatal(err)
				}
				waitRelists(t, n, "")
				for _, before := range []*corev1.Pod{container, vm} {
					samePod(t, n, before)
				}
			})
		}
	}
	t.Run("the VM is still managed", func(t *testing.T) { stillManaged(t, n, vm, qemu) })
	for _, name := range []string{"outlive-container", "outlive-vm"} {
		if err := n.Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, n)
}

// qemuOf is the process of the node's only VM.
func qemuOf(t *testing.T, n *node.Node) process.Process {
	t.Helper()
	found, err := n.ProcessesNaming("guest=ambipod-")
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		lines, _ := n.Leftovers(deadline(t))
		t.Fatalf("the node has %d QEMU processes, want 1:\n%s", len(found), strings.Join(lines, "\n"))
	}
	return found[0]
}

// waitRelists waits until kubelet has looked at all pods several times, unless it
// is kubelet that is down.
func waitRelists(t *testing.T, n *node.Node, down string) {
	t.Helper()
	if down == node.Kubelet {
		return
	}
	first := -1
	eventually(t, "kubelet has listed its pods again", func(ctx context.Context) error {
		count, err := relistCount(ctx, n)
		if err != nil {
			return err
		}
		if first < 0 {
			first = count
		}
		if count < first+relists {
			return fmt.Errorf("%d of %d lists were made", count-first, relists)
		}
		return nil
	})
}

// relistCount is from kubelet's metrics. Lists that fail count too.
func relistCount(ctx context.Context, n *node.Node) (int, error) {
	data, err := node.Fetch(ctx, n.KubeletURL()+"/metrics")
	if err != nil {
		return 0, err
	}
	const metric = "kubelet_pleg_relist_interval_seconds_count "
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, metric); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("kubelet has no metric %q", metric)
}

// samePod checks that kubelet has neither restarted nor replaced a pod.
func samePod(t *testing.T, n *node.Node, before *corev1.Pod) {
	t.Helper()
	now := waitRunning(t, n, strings.TrimSuffix(before.Name, n.PodName("")))
	was, is := before.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
	if was.ContainerID != is.ContainerID || is.RestartCount != was.RestartCount || before.Status.PodIP != now.Status.PodIP {
		t.Errorf("pod %s was container %s at %s and is %s at %s after %d restarts", before.Name,
			was.ContainerID, before.Status.PodIP, is.ContainerID, now.Status.PodIP, is.RestartCount)
	}
	if !was.State.Running.StartedAt.Equal(&is.State.Running.StartedAt) {
		t.Errorf("pod %s started at %s and now says %s", before.Name, was.State.Running.StartedAt, is.State.Running.StartedAt)
	}
}

// stillManaged checks log, status and stop after all the restarts.
func stillManaged(t *testing.T, n *node.Node, vm *corev1.Pod, qemu process.Process) {
	_, id, _ := strings.Cut(vm.Status.ContainerStatuses[0].ContainerID, "://")
	began := time.Now()
	crictl(t, n, "stop", "--timeout", "90", id)
	if qemu.Alive() {
		t.Error("QEMU runs after crictl stop")
	}
	lines, err := node.ReadPodLog(n.PodLog(vm, "machine"))
	if err != nil {
		t.Fatal(err)
	}
	// The guest says good-bye on its console: output is followed to the end, by a
	// daemon that did not start the VM.
	if last := lines[len(lines)-1]; last.Time.Before(began) {
		t.Errorf("the last line of the log, %q, is from %s, before the stop at %s", last.Text, last.Time, began)
	}
	eventually(t, "kubelet reports the VM's end", func(ctx context.Context) error {
		pod, err := n.Pod(ctx, "outlive-vm")
		if err != nil {
			return err
		}
		if end := pod.Status.ContainerStatuses[0].State.Terminated; end == nil {
			return fmt.Errorf("its state is %+v", pod.Status.ContainerStatuses[0].State)
		}
		return nil
	})
}

// TestHungLibvirtd shows that a libvirtd which does not answer makes vmruntime not
// ready and blocks nothing of the containers.
func TestHungLibvirtd(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	libvirtd := n.Process(node.Libvirtd)
	if err := libvirtd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := func() {
		if err := libvirtd.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(thaw)
	began := time.Now()
	c.run(t, containerKind).waitReady(t)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("a container pod took %s while libvirtd hung", took)
	}
	if err := node.RuntimeReady(deadline(t), n.VMRuntimeSocket()); err == nil {
		t.Error("vmruntime says that it is ready while libvirtd hangs")
	}
	thaw()
	eventually(t, "vmruntime is ready again", func(ctx context.Context) error {
		return node.RuntimeReady(ctx, n.VMRuntimeSocket())
	})
}
