//go:build e2e

package cluster

import (
	"fmt"
	"strings"
	"testing"
)

// TestVMsKeepOffPlainNodes has a node without Ambipod beside the other: VM pods do
// not go there, and one that somebody puts there says why it does not run.
func TestVMsKeepOffPlainNodes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	if got := kubectl(t, "get", "nodes", "-l", "vm.ambipod.io/capable=true", "-o", "name"); got != "node/"+shared.Node().Name()+"\n" {
		t.Errorf("nodes labelled as capable: %q, want only %s", got, shared.Node().Name())
	}
	t.Run("a container runs there", func(t *testing.T) {
		s.applyText(t, pinned("container", "image: busybox\n      command: [sleep, '3600']", "nodeName"))
		s.wait(t, "condition=Ready", "pod/container")
		s.kubectl(t, "delete", "pod/container", "--grace-period=1")
	})
	t.Run("scheduler", func(t *testing.T) {
		s.applyText(t, pinned("scheduled", "image: vm.ambipod.io/tiny", "nodeSelector", "runtimeClassName: vm"))
		s.says(t, "pod/scheduled", "didn't match Pod's node affinity/selector")
	})
	t.Run("kubelet", func(t *testing.T) {
		s.applyText(t, pinned("bound", "image: vm.ambipod.io/tiny", "nodeName", "runtimeClassName: vm"))
		s.wait(t, "jsonpath={.status.reason}=NodeAffinity", "pod/bound")
	})
	t.Run("containerd", func(t *testing.T) {
		s.applyText(t, pinned("forgotten", "image: vm.ambipod.io/tiny", "nodeName"))
		s.says(t, "pod/forgotten", `Failed to pull image "vm.ambipod.io/tiny"`)
	})
	t.Run("admission", func(t *testing.T) {
		cmd, err := shared.Command(deadline(t), "--namespace", s.name, "run", "hasty", "--image=vm.ambipod.io/tiny", "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		said, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(said), `set runtimeClassName to "vm"`) {
			t.Errorf("a VM that may go anywhere: %v: %s", err, said)
		}
	})
}

// pinned is a pod on the plain node, by its node's name or by a selector.
func pinned(name, container, by string, fields ...string) string {
	if by == "nodeSelector" {
		fields = append(fields, "nodeSelector: {kubernetes.io/hostname: "+plain.Name()+"}")
	} else {
		fields = append(fields, "nodeName: "+plain.Name())
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  %s
  containers:
    - name: only
      %s
      resources: {requests: {cpu: 50m}, limits: {memory: 128Mi}}
`, name, strings.Join(fields, "\n  "), container)
}
