//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// TestPodNetworkFromKubelet: what a pod's spec says of the network comes true: a port
// of the node leads to the VM, and its resolver is the pod's.
func TestPodNetworkFromKubelet(t *testing.T) {
	n := kubeletNode(t)
	const hostPort = 8081
	pod := examplePod(t, "vm-pod.yaml", "host-port", node.VMImage)
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: hostPort}}
	pod.Spec.DNSPolicy = corev1.DNSNone
	pod.Spec.DNSConfig = &corev1.PodDNSConfig{
		Nameservers: []string{"192.0.2.53"}, Searches: []string{"one.test", "two.test"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("3")}, {Name: "rotate"}},
	}
	apply(t, n, pod)

	vm := waitRunning(t, n, pod.Name)
	host := strings.TrimSuffix(strings.TrimPrefix(n.KubeletURL(), "https://"), ":10250")
	eventually(t, "the node's port leads to the VM", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, fmt.Sprintf("http://%s:%d/", host, hostPort))
		if err == nil && !strings.Contains(string(page), vm.Name) {
			err = fmt.Errorf("the page does not name the VM: %q", page)
		}
		return err
	})
	_, id, _ := strings.Cut(vm.Status.ContainerStatuses[0].ContainerID, "://")
	var resolver string
	eventually(t, "the guest has an agent", func(ctx context.Context) (err error) {
		// kubelet merges options by a map: their order is another each time.
		resolver, err = n.RunCrictl(ctx, "exec", id, "sh", "-c", "cat /etc/resolv.conf; echo $RES_OPTIONS | tr ' ' '\\n' | sort")
		return err
	})
	if want := "search one.test two.test\nnameserver 192.0.2.53\noptions ndots:3\noptions rotate\nndots:3\nrotate\n"; resolver != want {
		t.Errorf("the guest's resolver is %q, want %q", resolver, want)
	}
	if err := n.Delete(pod.Name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, n)
	if _, err := node.Fetch(deadline(t), fmt.Sprintf("http://%s:%d/", host, hostPort)); err == nil {
		t.Error("the node's port still answers without the VM")
	}
}

// TestNetworkCheck: what the plugins' verb CHECK says is at people's hands, and it
// tells an address that has gone.
func TestNetworkCheck(t *testing.T) {
	n := criNode(t)
	p := &pod{client: dial(t, n), config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	sandbox, err := p.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: vmKind.handler})
	must(t, err)
	p.sandboxID = sandbox.GetPodSandboxId()
	check := func() string {
		answer, err := p.PodSandboxStatus(deadline(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandboxID, Verbose: true})
		must(t, err)
		return answer.GetInfo()["networkCheck"]
	}
	if said := check(); said != `"passed"` {
		t.Errorf("CHECK of a network that is as it should be: %s", said)
	}
	_, id, _ := strings.Cut(p.sandboxID, ".") // criproxy's prefix
	namespace := filepath.Join(n.VMRunDir(), "netns", id)
	out, err := exec.CommandContext(deadline(t), "nsenter", "--net="+namespace, "ip", "addr", "flush", "dev", "eth0").CombinedOutput()
	if err != nil {
		t.Fatalf("take the pod's address away: %v: %s", err, out)
	}
	if said := check(); !strings.Contains(said, "check sandbox "+id) {
		t.Errorf("CHECK of a network without its address: %s", said)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
}
