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

// linuxKind has a kernel, and an agent, in its guest.
var linuxKind = kind{name: "linux", handler: vmHandler, image: node.VMImage}

const linuxMemory = 192 << 20

// guestRows are guests that misbehave.
func guestRows() []row {
	return []row{
		{component: "guest", moment: "StopContainer", fault: "ignores the power button", then: "the plug is pulled at the end of the grace; exit code 137", brief: true, run: deafGuest},
		{component: "guest", moment: "VM runs", fault: "halts without powering off", then: "goes on as running, over a restart of vmruntime; can be stopped", run: haltedGuest},
		{component: "guest", moment: "VM runs", fault: "floods its console", then: "lists and other guests answer; console files stay small; the log is whole", brief: true, run: floodedConsole},
		{component: "guest agent", moment: "ExecSync", fault: "floods and lies", then: "calls end at their deadlines; lists answer; the guest shuts down", kind: linuxKind, run: lyingAgent},
	}
}

func deafGuest(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	if err := r.typeTo(deadline(t), container.GetId(), bootsector.Halt); err != nil {
		t.Fatal(err)
	}
	const grace = 3
	began := time.Now()
	within(t, "StopContainer of a deaf guest", grace*time.Second+slack, func(ctx context.Context) error {
		_, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container.GetId(), Timeout: grace})
		return err
	})
	if took := time.Since(began); took < grace*time.Second {
		t.Errorf("the plug was pulled after %s, before the grace was over", took)
	}
	const killed = 137
	status, err := p.status(deadline(t), container.GetId())
	if err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || status.GetExitCode() != killed {
		t.Errorf("after StopContainer the VM is %v, %v", status, err)
	}
	r.comesUp(t, p)
}

func haltedGuest(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	container := r.up(t, p)
	if err := r.typeTo(ctx, container.GetId(), bootsector.Halt); err != nil {
		t.Fatal(err)
	}
	stillRuns := func(ctx context.Context) error {
		status, err := p.status(ctx, container.GetId())
		if err == nil && status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			err = fmt.Errorf("a VM whose guest has halted is %v", status)
		}
		return err
	}
	if err := stillRuns(ctx); err != nil {
		t.Error(err)
	}
	r.answersSoon(t, r.cri)
	if err := r.n.Restart(ctx, node.VMRuntime); err != nil {
		t.Fatal(err)
	}
	// criproxy may need a moment to find the new vmruntime.
	if err := node.Until(ctx, "the VM runs after a restart of vmruntime", stillRuns); err != nil {
		t.Error(err)
	}
	if found, err := r.qemus(container.GetId()); err != nil || len(found) != 1 {
		t.Errorf("a VM whose guest has halted has the processes %v, %v", found, err)
	}
	r.answersSoon(t, r.cri)
	if err := p.stop(ctx, container.GetId(), 0); err != nil {
		t.Error(err)
	}
}

func floodedConsole(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	if err := r.typeTo(deadline(t), container.GetId(), bootsector.Flood); err != nil {
		t.Fatal(err)
	}
	const flood = 4 << 20
	err := node.Until(deadline(t), "the log has some megabytes", func(context.Context) error {
		info, err := os.Stat(p.logPath(0))
		if err == nil && info.Size() < flood {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	r.answersSoon(t, r.cri)
	if r.vm != nil {
		within(t, "another guest's echo", 2*soon, func(ctx context.Context) error {
			return r.checkGuest(ctx, r.vm.pod, r.vm.container.GetId(), 0)
		})
	}
	const most = 10 << 20 // virtlogd keeps four files of 2 MiB
	files, err := filepath.Glob(filepath.Join(r.n.VMStateDir(), "vms", vmID(container.GetId())+"*", "console.log*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("console files %v, %v", files, err)
	}
	var size int64
	for _, file := range files {
		if info, err := os.Stat(file); err == nil {
			size += info.Size()
		} else if !errors.Is(err, os.ErrNotExist) { // rotated away
			t.Error(err)
		}
	}
	if size > most {
		t.Errorf("the console files have %d bytes", size)
	}
	if err := p.stop(deadline(t), container.GetId(), 0); err != nil {
		t.Error(err)
	}
	if _, err := node.ReadPodLog(p.logPath(0)); err != nil {
		t.Error(err)
	}
}

// liar takes the agent's place on its port, and answers what nobody has asked.
const liar = `mv "$(command -v qemu-ga)" /tmp/; killall qemu-ga; sleep 1
exec yes '{"return":{"pid":18446744073709551615,"exited":true,"exitcode":-7,"out-data":"%%%"}}' >/dev/virtio-ports/org.qemu.guest_agent.0`

func lyingAgent(t *testing.T, r *rig, p *pod) {
	p.memory = linuxMemory
	container, err := p.run(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	run := func(ctx context.Context, command ...string) error {
		_, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container.GetId(), Cmd: command, Timeout: int64(patience / time.Second)})
		return err
	}
	booting, cancel := context.WithTimeout(t.Context(), 3*rowTime)
	defer cancel()
	err = node.Until(booting, "the guest's agent answers", func(ctx context.Context) error { return run(ctx, "true") })
	if err != nil {
		t.Fatal(err)
	}
	if err := run(deadline(t), "setsid", "sh", "-c", "("+liar+") >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	err = node.Until(deadline(t), "the agent lies", func(ctx context.Context) error {
		began := time.Now()
		err := run(ctx, "true")
		if took := time.Since(began); took > patience+2*slack {
			return fmt.Errorf("ExecSync with a limit of %s took %s", patience, took)
		}
		if err == nil {
			return errors.New("the command was still run")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for range 3 {
		within(t, "ExecSync with an agent that lies", patience+2*slack, func(ctx context.Context) error {
			_ = run(ctx, "true") // that it ends is all that can be asked for
			return nil
		})
		r.answersSoon(t, r.cri)
	}
	const grace = 20
	if err := p.stop(deadline(t), container.GetId(), grace); err != nil {
		t.Error(err)
	}
	status, err := p.status(deadline(t), container.GetId())
	if err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("after StopContainer the VM is %v, %v", status, err)
	}
}
