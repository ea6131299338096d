//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// TestLivesUnderKubelet ends guests in all ways, and probes them, and looks at what
// kubelet makes of it. All pods run side by side.
func TestLivesUnderKubelet(t *testing.T) {
	n := kubeletNode(t)
	serveSector(t, n)
	applyProbed(t, n)
	for name, policy := range map[string]corev1.RestartPolicy{
		"never": corev1.RestartPolicyNever, "onfailure": corev1.RestartPolicyOnFailure, "always": corev1.RestartPolicyAlways,
	} {
		apply(t, n, sectorPod(t, "ends-"+name, policy))
	}
	ends(t, n)
	t.Run("liveness probes by HTTP and TCP", func(t *testing.T) {
		for _, name := range []string{"deaf-http", "deaf-tcp"} {
			waitState(t, n, name, "is restarted for its liveness probe", func(_ *corev1.Pod, c corev1.ContainerStatus) bool { return c.RestartCount > 0 })
			must(t, n.Delete(name))
		}
	})
	t.Run("probes and hooks in the guest", func(t *testing.T) { probesAndHooks(t, n) })
	nothingLeft(t, n)
}

func ends(t *testing.T, n *node.Node) {
	t.Helper()
	never, onFailure, always := waitBooted(t, n, "ends-never", bootsector.Ready), waitBooted(t, n, "ends-onfailure", bootsector.Ready), waitBooted(t, n, "ends-always", bootsector.Ready)

	t.Run("power-off with Never", func(t *testing.T) {
		typeOn(t, n, never, bootsector.PowerOff)
		pod := waitState(t, n, "ends-never", "has succeeded", func(p *corev1.Pod, _ corev1.ContainerStatus) bool { return p.Status.Phase == corev1.PodSucceeded })
		wantEnd(t, pod.Status.ContainerStatuses[0].State.Terminated, 0, "Completed", "")
	})
	t.Run("panic, then power-off with OnFailure", func(t *testing.T) {
		typeOn(t, n, onFailure, bootsector.Panic)
		pod := waitRestart(t, n, "ends-onfailure")
		wantEnd(t, pod.Status.ContainerStatuses[0].LastTerminationState.Terminated, 134, "GuestPanicked", "panicked")
		typeOn(t, n, pod, bootsector.PowerOff)
		waitState(t, n, "ends-onfailure", "has succeeded", func(p *corev1.Pod, c corev1.ContainerStatus) bool {
			return p.Status.Phase == corev1.PodSucceeded && c.RestartCount == 1
		})
	})
	t.Run("reboot, then QEMU's death with Always", func(t *testing.T) { reboots(t, n, always) })
	for _, name := range []string{"ends-never", "ends-onfailure", "ends-always"} {
		must(t, n.Delete(name))
	}
}

func reboots(t *testing.T, n *node.Node, pod *corev1.Pod) {
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	typeOn(t, n, pod, bootsector.Reset)
	// Then the firmware has reset the machine, too, which is no reboot of its own.
	eventually(t, "the guest has booted again", func(context.Context) error {
		lines, err := node.ReadPodLog(logOf(n, pod, 0))
		said := 0
		for _, line := range lines {
			said += strings.Count(line.Text, bootsector.Ready)
		}
		if err == nil && said != 2 {
			err = fmt.Errorf("it has said %d times that it has booted", said)
		}
		return err
	})
	eventually(t, "the reboot is counted", func(ctx context.Context) error {
		answer, err := dial(t, n).ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err == nil && answer.GetInfo()["reboots"] != "1" {
			err = fmt.Errorf("%s reboots", answer.GetInfo()["reboots"])
		}
		return err
	})
	table, err := exec.CommandContext(deadline(t), n.VMCtl(), "list").CombinedOutput()
	must(t, err)
	for line := range strings.Lines(string(table)) { // REBOOTS is the last column
		if fields := strings.Fields(line); strings.Contains(line, "/"+pod.Name+" ") && fields[len(fields)-1] != "1" {
			t.Errorf("vmctl does not show the reboot:\n%s", table)
		}
	}
	if !strings.Contains(string(table), "/"+pod.Name+" ") {
		t.Errorf("vmctl does not show the VM:\n%s", table)
	}
	var qemu int
	found, err := n.ProcessesNaming("guest=ambipod-" + strings.TrimPrefix(id, "vm.")[:12])
	must(t, err)
	for _, p := range found {
		qemu++
		must(t, p.Kill(deadline(t)))
	}
	if qemu != 1 {
		t.Fatalf("the VM has %d QEMU processes", qemu)
	}
	after := waitRestart(t, n, "ends-always")
	wantEnd(t, after.Status.ContainerStatuses[0].LastTerminationState.Terminated, 134, "Error", "QEMU died")
	if after.Status.PodIP != pod.Status.PodIP || after.Status.PodIP == "" {
		t.Errorf("the pod was at %q and is at %q: the VM did not restart in its sandbox", pod.Status.PodIP, after.Status.PodIP)
	}
}

// waitRestart waits until a pod's VM has been restarted once and has booted.
func waitRestart(t *testing.T, n *node.Node, name string) *corev1.Pod {
	t.Helper()
	waitState(t, n, name, "has restarted", func(_ *corev1.Pod, c corev1.ContainerStatus) bool {
		return c.RestartCount == 1 && c.State.Running != nil && c.LastTerminationState.Terminated != nil
	})
	return waitBooted(t, n, name, bootsector.Ready)
}

func wantEnd(t *testing.T, end *corev1.ContainerStateTerminated, code int32, reason, message string) {
	t.Helper()
	if end == nil {
		t.Fatal("the container has no end")
	}
	if end.ExitCode != code || end.Reason != reason || !strings.Contains(end.Message, message) {
		t.Errorf("it ended with %d %s %q, want %d %s %q", end.ExitCode, end.Reason, end.Message, code, reason, message)
	}
	if end.StartedAt.IsZero() || end.FinishedAt.Before(&end.StartedAt) {
		t.Errorf("it ran from %s to %s", end.StartedAt, end.FinishedAt)
	}
}

// applyProbed makes pods with probes of all kinds, and both hooks.
func applyProbed(t *testing.T, n *node.Node) {
	t.Helper()
	script := func(text string) corev1.LifecycleHandler {
		return corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", text}}}
	}
	probe := func(handler corev1.ProbeHandler) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 2, TimeoutSeconds: 10, FailureThreshold: 1}
	}
	http := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(80)}}
	tcp := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(22)}}

	full := light(examplePod(t, "vm-pod.yaml", "probed", node.VMImage))
	c := &full.Spec.Containers[0]
	c.StartupProbe, c.ReadinessProbe = probe(tcp), probe(http)
	c.StartupProbe.FailureThreshold = 100
	c.LivenessProbe = probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "!", "-e", "/run/sick"}}})
	c.Lifecycle = &corev1.Lifecycle{PostStart: new(script("touch /run/started")), PreStop: new(script("echo by the pre''Stop hook >/dev/ttyS0"))}
	apply(t, n, full)
	// These guests have no network: their probes never succeed.
	deaf := map[string]corev1.ProbeHandler{"deaf-http": http, "deaf-tcp": tcp}
	for name, handler := range deaf {
		pod := sectorPod(t, name, corev1.RestartPolicyAlways)
		pod.Spec.Containers[0].LivenessProbe = probe(handler)
		apply(t, n, pod)
	}
}

func probesAndHooks(t *testing.T, n *node.Node) {
	pod := waitRunning(t, n, "probed") // and ready
	if out, err := execIn(deadline(t), n, pod, "ls /run/started"); err != nil || out != "/run/started\n" {
		t.Errorf("after the postStart hook: %q, %v", out, err)
	}
	if err := unready(t, n, pod); err != nil {
		t.Error(err)
	}
	_, err := execIn(deadline(t), n, pod, "touch /run/sick")
	must(t, err)
	pod = waitState(t, n, "probed", "is restarted for its liveness probe", func(_ *corev1.Pod, c corev1.ContainerStatus) bool {
		return c.RestartCount == 1 && c.LastTerminationState.Terminated != nil
	})
	// The guest was asked, and powered itself off within its grace.
	wantEnd(t, pod.Status.ContainerStatuses[0].LastTerminationState.Terminated, 0, "Completed", "")
	for _, text := range []string{"by the preStop hook", "tiny: going down"} {
		if _, err := node.WaitPodLog(deadline(t), logOf(n, pod, 0), text); err != nil {
			t.Error(err)
		}
	}
	must(t, n.Delete("probed"))
}

// unready takes the guest's web server away and back.
func unready(t *testing.T, n *node.Node, pod *corev1.Pod) error {
	t.Helper()
	if _, err := execIn(deadline(t), n, pod, "killall httpd"); err != nil {
		return err
	}
	waitState(t, n, "probed", "is not ready", func(_ *corev1.Pod, c corev1.ContainerStatus) bool { return !c.Ready })
	if _, err := execIn(deadline(t), n, pod, "httpd -p 80 -h /var/www"); err != nil {
		return err
	}
	waitState(t, n, "probed", "is ready again", func(_ *corev1.Pod, c corev1.ContainerStatus) bool { return c.Ready && c.RestartCount == 0 })
	return nil
}
