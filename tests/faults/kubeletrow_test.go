//go:build faults

package faults

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// kubeletRow is without witnesses: kubelet removes the pods that it does not know.
func kubeletRow() row {
	return row{
		alone:     true,
		component: "kubelet", moment: "StartContainer", fault: "kill -9",
		then: "the next kubelet has the pod run, once", run: killKubelet,
	}
}

// killKubelet ends kubelet while it waits for a VM's start. The call ends with it, and
// whether the VM starts all the same is a matter of chance; the next kubelet takes it
// as it is, or starts another in the same sandbox.
func killKubelet(t *testing.T, r *rig, _ *pod) {
	const name = "by-kubelet"
	// kubelet looks once a minute for sandboxes that nobody needs any more.
	ctx, cancel := context.WithTimeout(t.Context(), 5*rowTime)
	defer cancel()
	before, err := r.snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.n.StartDaemon(ctx, node.Kubelet); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.n.Terminate(deadline(t), node.Kubelet); err != nil {
			t.Error(err)
		}
	}()
	pod, err := node.LoadPod(filepath.Join(r.n.Checkout(), "examples", "vm-pod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	main := &pod.Spec.Containers[0]
	pod.Name, main.Image, main.ReadinessProbe, main.LivenessProbe = name, sectorImage, nil, nil
	if err := r.arm("StartContainer/granted freeze"); err != nil {
		t.Fatal(err)
	}
	if err := r.n.Apply(pod); err != nil {
		t.Fatal(err)
	}
	vmruntime := r.n.Process(node.VMRuntime)
	r.waitFrozen(t, vmruntime.PID)
	if err := errors.Join(r.n.Kill(ctx, node.Kubelet), vmruntime.Signal(syscall.SIGCONT), r.n.StartDaemon(ctx, node.Kubelet)); err != nil {
		t.Fatal(err)
	}
	running, err := r.n.WaitRunning(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if c := running.Status.ContainerStatuses[0]; c.RestartCount > 1 {
		t.Errorf("kubelet has started the VM %d times", c.RestartCount+1)
	}
	if found, err := r.n.ProcessesNaming("guest=ambipod-"); err != nil || len(found) != 1 {
		t.Errorf("the pod has the QEMU processes %v, %v", found, err)
	}
	if err := r.n.Delete(name); err != nil {
		t.Fatal(err)
	}
	if err := r.n.WaitGone(ctx, name); err != nil {
		t.Error(err)
	}
	err = node.Until(ctx, "kubelet has cleaned up", func(ctx context.Context) error {
		after, err := r.snapshot(ctx)
		if err != nil {
			return err
		}
		return difference(before, after)
	})
	if err != nil {
		t.Error(err)
	}
}
