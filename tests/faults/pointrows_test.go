//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// pointRows kill vmruntime at each of its fail points.
func pointRows() []row {
	var rows []row
	for _, p := range points {
		for i, name := range p.names {
			operation, point := p.operation, p.operation+"/"+name
			then := "the pod comes up"
			if !begins[operation] {
				then = "the pod goes"
			}
			rows = append(rows, row{
				component: "vmruntime", moment: point, fault: "kill -9", then: then,
				brief: i == len(p.names)/2,
				run: func(t *testing.T, r *rig, p *pod) {
					p.addVolumes(t)
					r.killAt(t, p, operation, point)
				},
			})
		}
	}
	return rows
}

// addVolumes gives a VM one of each kind: files that are copied, folders that have
// servers, an emptyDir that is a disk, and a disk that ends with the VM.
func (p *pod) addVolumes(t *testing.T) {
	t.Helper()
	file, folder := filepath.Join(t.TempDir(), "file"), t.TempDir()
	emptyDir := filepath.Join(t.TempDir(), "kubernetes.io~empty-dir", "work")
	if err := errors.Join(os.MkdirAll(emptyDir, 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	p.annotations = map[string]string{"vm.ambipod.io/disks": "[{name: scratch, size: 2Mi}, {volume: work, size: 2Mi}]"}
	p.mounts = []*runtimeapi.Mount{
		{ContainerPath: "/etc/file", HostPath: file},
		{ContainerPath: "/data", HostPath: folder},
		{ContainerPath: "/fixed", HostPath: folder, Readonly: true},
		{ContainerPath: "/work", HostPath: emptyDir},
	}
}

// begins are the operations that lead to a running VM.
var begins = map[string]bool{"RunPodSandbox": true, "CreateContainer": true, "StartContainer": true}

// killAt brings a pod up or down, with vmruntime killed at a point of it, and restarted.
func (r *rig) killAt(t *testing.T, p *pod, operation, point string) {
	ctx := deadline(t)
	if begins[operation] {
		if err := r.arm(point); err != nil {
			t.Fatal(err)
		}
		_ = p.sync(ctx)
		r.restarted(t, point)
		r.comesUp(t, p)
		return
	}
	container, err := p.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.WaitPodLog(ctx, p.logPath(0), bootsector.Ready); err != nil {
		t.Fatal(err)
	}
	if err := r.arm(point); err != nil {
		t.Fatal(err)
	}
	switch operation {
	case "StopContainer":
		var grace int64
		if point == "StopContainer/asked" {
			grace = 10
		}
		_ = p.stop(ctx, container.GetId(), grace)
	case "RemoveContainer":
		if err := p.stop(ctx, container.GetId(), 0); err != nil {
			t.Fatal(err)
		}
		_ = p.removeContainer(ctx, container.GetId())
	case "StopPodSandbox":
		_ = p.stopSandbox(ctx, container.GetPodSandboxId())
	default:
		_ = p.removeSandbox(ctx, container.GetPodSandboxId())
	}
	r.restarted(t, point)
}

// restarted starts vmruntime, which must have ended at the point.
func (r *rig) restarted(t *testing.T, point string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(deadline(t), 10*time.Second)
	defer cancel()
	if err := r.n.Process(node.VMRuntime).Wait(ctx); err != nil {
		t.Fatalf("vmruntime has not passed the fail point %s: %v", point, err)
	}
	if err := r.n.StartDaemon(deadline(t), node.VMRuntime); err != nil {
		t.Fatal(err)
	}
}

// comesUp lets kubelet's loop bring a pod up, and checks that there is one of
// everything and that the guest lives.
func (r *rig) comesUp(t *testing.T, p *pod) *runtimeapi.Container {
	t.Helper()
	ctx := deadline(t)
	container, err := p.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// As long as criproxy has not found a new vmruntime, it lists what the old one said
	// last, and that knows of no VM that has ended by itself since.
	if err := node.Until(ctx, "the pod is listed as it is", func(ctx context.Context) error { return p.onlyRuns(ctx, container) }); err != nil {
		t.Error(err)
	}
	r.hasOneQEMU(t, p)
	attempt := container.GetMetadata().GetAttempt()
	if _, err := node.WaitPodLog(ctx, p.logPath(attempt), bootsector.Ready); err != nil {
		t.Error(err)
	}
	if err := r.checkGuest(ctx, p, container.GetId(), attempt); err != nil {
		t.Error(err)
	}
	return container
}

// onlyRuns says what is listed of the pod beside one ready sandbox and this container.
func (p *pod) onlyRuns(ctx context.Context, container *runtimeapi.Container) error {
	boxes, err := p.sandboxes(ctx)
	if err != nil {
		return err
	}
	ready := 0
	for _, box := range boxes {
		if box.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			ready++
		}
	}
	if ready != 1 {
		return fmt.Errorf("the pod has %d ready sandboxes: %v", ready, boxes)
	}
	list, err := p.containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.GetId() != container.GetId() && c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("beside the running container there is %v", c)
		}
	}
	return nil
}

func (r *rig) hasOneQEMU(t *testing.T, p *pod) {
	t.Helper()
	list, err := p.containers(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	processes := 0
	for _, c := range list {
		found, err := r.qemus(c.GetId())
		if err != nil {
			t.Fatal(err)
		}
		processes += len(found)
	}
	if processes != 1 {
		t.Errorf("the pod has %d QEMU processes, want 1", processes)
	}
}
