//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

const (
	// soon is by when what need not wait for the faulty part must be answered, even on
	// a busy machine.
	soon = 5 * time.Second
	// patience is the deadline of calls that cannot succeed, slack by how much later
	// they may end.
	patience = 3 * time.Second
	slack    = 3 * time.Second
)

// daemonRows kill and freeze daemons, QEMU and vmwrapper.
func daemonRows() []row {
	rows := []row{
		{component: "QEMU", moment: "VM runs", fault: "kill -9", then: "exited with an error; starts anew in its sandbox", brief: true, run: killQEMU},
		{component: "QEMU", moment: "VM runs", fault: "hangs (SIGSTOP)", then: "lists and statistics answer; a stop ends in time", brief: true, run: hungQEMU},
		{component: "QEMU", moment: "vmruntime is down", fault: "kill -9", then: "exited; starts anew", run: qemuEndsUnseen(node.VMRuntime)},
		{component: "QEMU", moment: "libvirtd is down", fault: "kill -9", then: "exited; starts anew", run: qemuEndsUnseen(node.Libvirtd)},
		{component: "vmwrapper", moment: "waits for its descriptors", fault: "kill -9", then: "the start fails; the next succeeds", brief: true, run: killWrapper},
		{component: "libvirtd", moment: "StartContainer", fault: "kill -9", then: "the pod comes up", run: killLibvirtdDuring("StartContainer/granted")},
		{component: "libvirtd", moment: "CreateContainer", fault: "kill -9", then: "the pod comes up", run: killLibvirtdDuring("CreateContainer/config-written")},
		{component: "libvirtd", moment: "StopContainer", fault: "kill -9", then: "the pod goes", run: killLibvirtdInStop},
		{component: "libvirtd", moment: "VM runs", fault: "hangs (SIGSTOP)", then: "lists answer at once, other calls end at their deadline", brief: true, run: hungLibvirtd},
		{component: "libvirtd", moment: "vmruntime starts", fault: "hangs (SIGSTOP)", then: "vmruntime serves lists meanwhile", run: hungLibvirtdAtStart},
		{component: "criproxy", moment: "StartContainer", fault: "kill -9", then: "the VM is started once", run: killProxyDuringStart},
	}
	for _, daemon := range []string{node.VMRuntime, node.CRIProxy, node.Libvirtd, node.Containerd} {
		rows = append(rows, row{
			component: daemon, moment: "both kinds of pod run", fault: "kill -9", brief: daemon == node.VMRuntime,
			then: "they go on; the guest is heard before, during and after", run: killDaemon(daemon),
		})
	}
	return rows
}

// up makes the row's pod run and waits for its guest.
func (r *rig) up(t *testing.T, p *pod) *runtimeapi.Container {
	t.Helper()
	container, err := p.run(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	attempt := container.GetMetadata().GetAttempt()
	if _, err := node.WaitPodLog(deadline(t), p.logPath(attempt), bootsector.Ready); err != nil {
		t.Fatal(err)
	}
	return container
}

// signalQEMU does something to a VM's process.
func (r *rig) signalQEMU(t *testing.T, id string, signal syscall.Signal) {
	t.Helper()
	found, err := r.qemus(id)
	if err != nil || len(found) != 1 {
		t.Fatalf("the VM has the QEMU processes %v: %v", found, err)
	}
	if err := found[0].Signal(signal); err != nil {
		t.Fatal(err)
	}
	if signal == syscall.SIGKILL {
		if err := found[0].Wait(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func killDaemon(daemon string) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		ctx := deadline(t)
		before := r.up(t, p)
		if err := r.n.Kill(ctx, daemon); err != nil {
			t.Fatal(err)
		}
		// While no one copies the console, what the guest says must not be lost.
		if err := r.typeTo(ctx, before.GetId(), "<DOWN>"); err != nil {
			t.Fatal(err)
		}
		if err := r.restore(ctx); err != nil {
			t.Fatal(err)
		}
		after := r.comesUp(t, p)
		if after.GetId() != before.GetId() {
			t.Errorf("the pod's container was %s and is %s", before.GetId(), after.GetId())
		}
		if err := logContains(ctx, p, 0, "<DOWN>"); err != nil {
			t.Error(err)
		}
	}
}

func logContains(ctx context.Context, p *pod, attempt uint32, word string) error {
	return node.Until(ctx, word+" is in the log", func(context.Context) error {
		lines, err := node.ReadPodLog(p.logPath(attempt))
		if err != nil {
			return err
		}
		var text strings.Builder
		for _, line := range lines {
			text.WriteString(line.Text)
		}
		if !strings.Contains(text.String(), word) {
			return fmt.Errorf("it is %q", text.String())
		}
		return nil
	})
}

func killQEMU(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	r.signalQEMU(t, container.GetId(), syscall.SIGKILL)
	endedBadly(t, p, container.GetId())
	again := r.comesUp(t, p)
	if again.GetId() == container.GetId() || again.GetPodSandboxId() != container.GetPodSandboxId() {
		t.Errorf("after container %v came %v, want another in the same sandbox", container, again)
	}
}

// endedBadly waits until a container is told to have failed.
func endedBadly(t *testing.T, p *pod, id string) {
	t.Helper()
	status, err := p.waitExited(deadline(t), id)
	if err != nil {
		t.Fatal(err)
	}
	if status.GetExitCode() == 0 || status.GetReason() != "Error" || status.GetFinishedAt() < status.GetStartedAt() {
		t.Errorf("the end of a VM whose QEMU was killed is told as %v", status)
	}
}

func qemuEndsUnseen(down string) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		ctx := deadline(t)
		container := r.up(t, p)
		if err := r.n.Kill(ctx, down); err != nil {
			t.Fatal(err)
		}
		r.signalQEMU(t, container.GetId(), syscall.SIGKILL)
		if err := r.restore(ctx); err != nil {
			t.Fatal(err)
		}
		endedBadly(t, p, container.GetId())
		r.comesUp(t, p)
	}
}

func hungQEMU(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	r.signalQEMU(t, container.GetId(), syscall.SIGSTOP)
	r.answersSoon(t, r.direct)
	const grace = 2
	const killPatience = 5 * time.Second // vmruntime's
	within(t, "StopContainer of a hung QEMU", grace*time.Second+killPatience+slack, func(ctx context.Context) error {
		_, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container.GetId(), Timeout: grace})
		return err
	})
	if status, err := p.status(deadline(t), container.GetId()); err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("after StopContainer the VM is %v, %v", status, err)
	}
	r.comesUp(t, p)
}

// within fails a test when a call takes longer than it may; an error is one only if
// the call was in time.
func within(t *testing.T, what string, most time.Duration, call func(context.Context) error) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(deadline(t), 2*most)
	defer cancel()
	err := call(ctx)
	if took := time.Since(began); took > most {
		t.Errorf("%s took %s, want at most %s: %v", what, took, most, err)
	} else if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// answersSoon makes all calls that kubelet needs in order to know what there is.
func (r *rig) answersSoon(t *testing.T, c cri) {
	t.Helper()
	within(t, "ListPodSandbox", soon, func(ctx context.Context) error {
		answer, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return errors.Join(err, atLeastOne(len(answer.GetItems())))
	})
	within(t, "ListContainers", soon, func(ctx context.Context) error {
		answer, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return errors.Join(err, atLeastOne(len(answer.GetContainers())))
	})
	within(t, "ListContainerStats", soon, func(ctx context.Context) error {
		answer, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		return errors.Join(err, atLeastOne(len(answer.GetStats())))
	})
	if r.vm == nil {
		return
	}
	// These are made through criproxy, which may need a moment to find a new vmruntime.
	within(t, "ContainerStatus", soon, func(ctx context.Context) error {
		return node.Until(ctx, "the status is told", func(ctx context.Context) error {
			_, err := r.vm.status(ctx, r.vm.container.GetId())
			return err
		})
	})
	within(t, "PodSandboxStatus", soon, func(ctx context.Context) error {
		_, err := r.vm.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.vm.container.GetPodSandboxId()})
		return err
	})
}

func atLeastOne(n int) error {
	if n == 0 {
		return errors.New("the list is empty")
	}
	return nil
}

// atDeadline makes a call that cannot succeed and checks that it ends when its caller
// has no more patience, with the code for that or the one for a part that is away.
func atDeadline(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(deadline(t), patience)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	if took := time.Since(began); took > patience+slack {
		t.Errorf("%s with a deadline of %s took %s", what, patience, took)
	}
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable {
		t.Errorf("%s: %v", what, err)
	}
}

func killWrapper(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	if err := r.arm("StartContainer/admitted freeze"); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- p.sync(ctx) }()
	vmruntime := r.n.Process(node.VMRuntime)
	r.waitFrozen(t, vmruntime.PID)
	wrappers, err := r.n.ProcessesNaming("/vmwrapper -name ")
	if err != nil || len(wrappers) != 1 {
		t.Errorf("vmwrapper is the processes %v: %v", wrappers, err)
	}
	for _, w := range wrappers {
		if err := w.Kill(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := vmruntime.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err == nil || errors.Is(err, errNotSeenYet) {
		t.Errorf("the start whose vmwrapper was killed: %v", err)
	}
	r.comesUp(t, p)
}

// waitFrozen returns when a process has stopped.
func (r *rig) waitFrozen(t *testing.T, pid int) {
	t.Helper()
	err := node.Until(deadline(t), "the process stands still", func(context.Context) error {
		state, err := stateOf(pid)
		if err == nil && state != "T" {
			err = fmt.Errorf("its state is %s", state)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// killLibvirtdDuring ends libvirtd while a call waits for it.
func killLibvirtdDuring(point string) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		ctx := deadline(t)
		if err := r.arm(point + " freeze"); err != nil {
			t.Fatal(err)
		}
		first := make(chan error, 1)
		go func() { first <- p.sync(ctx) }()
		vmruntime, libvirtd := r.n.Process(node.VMRuntime), r.n.Process(node.Libvirtd)
		r.waitFrozen(t, vmruntime.PID)
		// The request reaches a libvirtd that does not read it any more.
		if err := errors.Join(libvirtd.Signal(syscall.SIGSTOP), vmruntime.Signal(syscall.SIGCONT)); err != nil {
			t.Fatal(err)
		}
		if err := libvirtd.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.restore(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("the call that was under way: %v", <-first)
		r.comesUp(t, p)
	}
}

func killLibvirtdInStop(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	container := r.up(t, p)
	libvirtd := r.n.Process(node.Libvirtd)
	if err := libvirtd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- p.stop(ctx, container.GetId(), 0) }()
	if err := libvirtd.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.restore(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the call that was under way: %v", <-first)
}

func hungLibvirtd(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	libvirtd := r.n.Process(node.Libvirtd)
	if err := libvirtd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := libvirtd.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	r.answersSoon(t, r.cri)
	atDeadline(t, "StopContainer", func(ctx context.Context) error {
		_, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container.GetId()})
		return err
	})
	other := r.pod(sectorKind)
	var box string
	within(t, "RunPodSandbox, which needs no libvirtd", 2*soon, func(ctx context.Context) (err error) {
		box, err = other.runSandbox(ctx, 0)
		return err
	})
	atDeadline(t, "CreateContainer", func(ctx context.Context) error {
		_, err := other.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: box, Config: other.containerConfig(0), SandboxConfig: other.sandboxConfig(0),
		})
		return err
	})
	answer, err := r.direct.Status(deadline(t), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Error(err)
	}
	for _, condition := range answer.GetStatus().GetConditions() {
		if condition.GetType() == runtimeapi.RuntimeReady && condition.GetStatus() {
			t.Error("vmruntime says that it is ready")
		}
	}
	r.answersSoon(t, r.cri)
	if err := libvirtd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := other.remove(deadline(t)); err != nil {
		t.Error(err)
	}
}

func hungLibvirtdAtStart(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	before := r.up(t, p)
	libvirtd := r.n.Process(node.Libvirtd)
	if err := errors.Join(r.n.Kill(ctx, node.VMRuntime), libvirtd.Signal(syscall.SIGSTOP)); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- r.n.StartDaemon(ctx, node.VMRuntime) }() // ready only with libvirtd
	within(t, "vmruntime's first list", 2*soon, func(ctx context.Context) error {
		return node.Until(ctx, "vmruntime lists", func(ctx context.Context) error {
			_, err := r.direct.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		})
	})
	r.answersSoon(t, r.direct)
	if err := libvirtd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if after := r.comesUp(t, p); after.GetId() != before.GetId() {
		t.Errorf("the pod's container was %s and is %s", before.GetId(), after.GetId())
	}
}

func killProxyDuringStart(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	if err := r.arm("StartContainer/granted freeze"); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- p.sync(ctx) }()
	vmruntime := r.n.Process(node.VMRuntime)
	r.waitFrozen(t, vmruntime.PID)
	if err := r.n.Kill(ctx, node.CRIProxy); err != nil {
		t.Fatal(err)
	}
	if err := vmruntime.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-first; status.Code(err) != codes.Unavailable {
		t.Errorf("the call through the killed criproxy: %v", err)
	}
	if err := r.restore(ctx); err != nil {
		t.Fatal(err)
	}
	r.comesUp(t, p)
}
