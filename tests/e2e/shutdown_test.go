//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// TestNodeShutsDown: before the machine shuts down, kubelet has guests power themselves
// off, and only then lets it go on.
func TestNodeShutsDown(t *testing.T) {
	n := tunedNode(t)
	serveSector(t, n)
	logins := tunedLogind
	apply(t, n, light(examplePod(t, "vm-pod.yaml", "shuts-linux", node.VMImage)))
	apply(t, n, sectorPod(t, "shuts-sector", corev1.RestartPolicyAlways))
	pods := map[string]*corev1.Pod{
		"going down": waitBooted(t, n, "shuts-linux", vmKind.ready), // said by the guest's init
		"":           waitBooted(t, n, "shuts-sector", bootsector.Ready),
	}
	if held := logins.Locks(); held != 1 {
		t.Fatalf("kubelet holds %d inhibitor locks, want one", held)
	}
	must(t, logins.Announce(true))
	eventually(t, "kubelet lets the machine shut down", func(context.Context) error {
		if held := logins.Locks(); held > 0 {
			return fmt.Errorf("%d locks are held", held)
		}
		return nil
	})
	for words, pod := range pods {
		_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		answer, err := dial(t, n).ContainerStatus(deadline(t), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		must(t, err)
		if s := answer.GetStatus(); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetReason() != "Completed" || s.GetExitCode() != 0 {
			t.Errorf("when the machine may shut down, VM %s is %v", pod.Name, s)
		}
		log, err := os.ReadFile(logOf(n, pod, 0))
		if err != nil || !strings.Contains(string(log), words) {
			t.Errorf("the guest of %s did not say %q: %s (%v)", pod.Name, words, log, err)
		}
	}
	must(t, logins.Announce(false))
	eventually(t, "kubelet takes a lock again", func(context.Context) error {
		if held := logins.Locks(); held != 1 {
			return fmt.Errorf("%d locks are held", held)
		}
		return nil
	})
	must(t, n.Delete("shuts-linux"))
	must(t, n.Delete("shuts-sector"))
}
