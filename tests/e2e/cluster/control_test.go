//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
)

// TestProbesOfVMs breaks what each kind of probe looks at: a VM that is not ready
// says so and recovers, one that is not alive is started anew.
func TestProbesOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "probes.yaml")
	for _, p := range []struct{ kind, unready, ready, kill string }{
		{"http", "rm /var/www/ready", "echo yes >/var/www/ready", "rm /var/www/alive"},
		{"tcp", "killall httpd", "httpd -p 80 -h /var/www", "killall dropbear"},
		{"exec", "touch /run/not-ready", "rm /run/not-ready", "touch /run/not-alive"},
	} {
		t.Run(p.kind, func(t *testing.T) {
			pod := "pod/probed-" + p.kind
			s.wait(t, "condition=Ready", pod)
			s.inGuest(t, pod, p.unready)
			s.wait(t, "condition=Ready=false", pod)
			s.inGuest(t, pod, p.ready)
			s.wait(t, "condition=Ready", pod)
			s.inGuest(t, pod, p.kill)
			s.wait(t, "jsonpath={.status.containerStatuses[0].restartCount}=1", pod)
			s.wait(t, "condition=Ready", pod)
			s.says(t, pod, "failed liveness probe, will be restarted")
		})
	}
}

// TestAutoscalerOfVMs gives a VM work and takes it away.
func TestAutoscalerOfVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const hpa, render = "hpa/render", "deployment/render"
	s.apply(t, "hpa.yaml")
	s.rolledOut(t, render)
	idle := func() {
		t.Helper()
		eventually(t, "the autoscaler sees one idle VM", func(ctx context.Context) error {
			out, err := shared.Kubectl(ctx, "--namespace", s.name, "get", hpa, "-o",
				"jsonpath={.status.currentReplicas} {.status.currentMetrics[0].resource.current.averageUtilization}")
			var replicas, load int
			if err == nil {
				_, err = fmt.Sscan(out, &replicas, &load)
			}
			if err == nil && (replicas != 1 || load >= 100) {
				err = fmt.Errorf("%d replicas at %d%%: %w", replicas, load, errdefs.ErrUnavailable)
			}
			return err
		})
	}
	idle()
	busy := s.names(t, "pods", "app=render")[0]
	s.inGuest(t, busy, "yes >/dev/null 2>&1 </dev/null &")
	s.wait(t, "jsonpath={.status.currentReplicas}=2", hpa)
	s.says(t, hpa, "cpu resource utilization")
	s.inGuest(t, busy, "killall yes")
	idle()
}

// TestQuotaCountsVMs has room for one VM, whose size a limit range says.
func TestQuotaCountsVMs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "quota.yaml")
	s.wait(t, "condition=Ready", "pod/small")
	used := s.kubectl(t, "get", "resourcequota/one-vm", "-o", "jsonpath={.status.used.pods} {.status.used.limits\\.memory}")
	if used != "1 352Mi" { // the limit range's 160Mi and the RuntimeClass' 192Mi
		t.Errorf("the quota counts %q, want one pod with 352Mi", used)
	}
	const guestKB, least = 160 << 10, 120 << 10 // the kernel keeps a part
	var total int
	if _, err := fmt.Sscan(s.inGuest(t, "pod/small", "awk '/MemTotal/ {print $2}' /proc/meminfo"), &total); err != nil || total > guestKB || total < least {
		t.Errorf("the guest has %d kB (%v), want little less than %d", total, err, guestKB)
	}
	for want, args := range map[string][]string{
		"exceeded quota: one-vm":                   {"--image=vm.ambipod.io/tiny"},
		"maximum memory usage per Container is 25": {"--image=vm.ambipod.io/tiny", `--overrides={"spec":{"containers":[{"name":"second","image":"vm.ambipod.io/tiny","resources":{"limits":{"memory":"257Mi"}}}]}}`},
	} {
		_, err := shared.Kubectl(deadline(t), append([]string{"--namespace", s.name, "run", "second"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a second VM: %v, want %q", err, want)
		}
	}
}

// TestImportantVMComesFirst preempts a VM for another.
func TestImportantVMComesFirst(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	t.Cleanup(func() { atEnd(t, "delete", "priorityclass/vm-important", "--ignore-not-found") })
	kubectl(t, "patch", "node", shared.Node().Name(), "--subresource=status", "--type=merge",
		"-p", `{"status":{"capacity":{"example.com/slot":"1"}}}`)
	s.kubectl(t, "run", "ordinary", "--image=vm.ambipod.io/tiny", `--overrides={"spec":{"runtimeClassName":"vm","terminationGracePeriodSeconds":1,`+
		`"containers":[{"name":"ordinary","image":"vm.ambipod.io/tiny","resources":{"limits":{"memory":"128Mi","example.com/slot":"1"}}}]}}`)
	s.wait(t, "jsonpath={.status.phase}=Running", "pod/ordinary")
	s.apply(t, "priority.yaml")
	s.wait(t, "condition=Ready", "pod/important")
	s.podsLeft(t, "run=ordinary", 0)
	s.says(t, "pod/ordinary", "Preempted")
}

// TestResizeInPlace changes the CPU limit of a running VM, and fails to change its
// memory with a reason.
func TestResizeInPlace(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "pod.yaml")
	const pod = "pod/tiny-vm"
	s.wait(t, "condition=Ready", pod)
	resize := func(resources string) {
		t.Helper()
		s.kubectl(t, "patch", pod, "--subresource=resize", "-p", `{"spec":{"containers":[{"name":"machine","resources":`+resources+`}]}}`)
	}
	resize(`{"limits":{"cpu":"500m"}}`)
	s.wait(t, "jsonpath={.status.containerStatuses[0].resources.limits.cpu}=500m", pod)
	resize(`{"limits":{"memory":"256Mi"}}`)
	eventually(t, "the pod says why its memory stays", func(ctx context.Context) error {
		why, err := shared.Kubectl(ctx, "--namespace", s.name, "get", pod, "-o",
			`jsonpath={.status.conditions[?(@.type=="PodResizeInProgress")].message}`)
		if err == nil && (!strings.Contains(why, "cannot be changed") || !strings.Contains(why, "restart the pod")) {
			err = fmt.Errorf("it says %q: %w", why, errdefs.ErrUnavailable)
		}
		return err
	})
	if got := s.kubectl(t, "get", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].resources.limits.memory}"); got != "0 128Mi" {
		t.Errorf("restarts and memory are %q after a resize that was refused, want 0 and 128Mi", got)
	}
}

// says waits until an event of an object has a text.
func (s space) says(t *testing.T, object, want string) {
	t.Helper()
	eventually(t, object+" has an event that explains it", func(ctx context.Context) error {
		_, name, _ := strings.Cut(object, "/")
		return fixture.HasEvent(ctx, shared, s.name, name, want)
	})
}
