//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// sectorImage is a guest that boots in a second and obeys letters; see
// tests/bootsector.
const sectorImage = "vm.ambipod.io/http/127.0.0.1/sector.img:latest"

// sectorKind is such a guest, made through the CRI.
var sectorKind = kind{name: "vm", handler: "vm", image: sectorImage, ready: bootsector.Ready}

// serveSector puts the guest on the node's image server.
func serveSector(t *testing.T, n *node.Node) {
	t.Helper()
	must(t, bootsector.WriteDisk(deadline(t), filepath.Join(n.SiteDir(), "sector.img")))
}

// sectorPod is a VM pod whose guest obeys the letters that are typed on its console.
func sectorPod(t *testing.T, name string, policy corev1.RestartPolicy) *corev1.Pod {
	t.Helper()
	pod := light(examplePod(t, "vm-pod.yaml", name, sectorImage))
	pod.Spec.RestartPolicy = policy
	pod.Spec.Containers[0].Stdin, pod.Spec.Containers[0].TTY = true, true
	pod.Spec.TerminationGracePeriodSeconds = new(int64(20))
	return pod
}

// light makes a pod one of several that kubelet admits to a node with two processors.
func light(pod *corev1.Pod) *corev1.Pod {
	delete(pod.Spec.Overhead, corev1.ResourceCPU)
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
	return pod
}

// applyWith gives a VM pod user-data and hands it to kubelet.
func applyWith(t *testing.T, n *node.Node, pod *corev1.Pod, userData string) {
	t.Helper()
	if userData != "" {
		pod.Annotations["vm.ambipod.io/user-data"] = userData
	}
	apply(t, n, pod)
}

// viaKubelet runs a command in a pod, or attaches to it when there is none, by
// kubelet's own server, as the API server does for kubectl.
func viaKubelet(ctx context.Context, n *node.Node, pod *corev1.Pod, o remotecommand.StreamOptions, cmd ...string) error {
	verb := "attach"
	query := url.Values{}
	if len(cmd) > 0 {
		verb = "exec"
		query["command"] = cmd
	}
	for name, wanted := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if wanted {
			query.Set(name, "1")
		}
	}
	at, err := url.Parse(fmt.Sprintf("%s/%s/%s/%s/%s?%s", n.KubeletURL(), verb, pod.Namespace, pod.Name, pod.Spec.Containers[0].Name, query.Encode()))
	if err != nil {
		return err
	}
	config := &rest.Config{Host: at.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	client, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, at)
	if err != nil {
		return err
	}
	return client.StreamWithContext(ctx, o)
}

// execIn runs a script in a pod's guest and returns what it printed.
func execIn(ctx context.Context, n *node.Node, pod *corev1.Pod, script string) (string, error) {
	var out, complaints strings.Builder
	if err := viaKubelet(ctx, n, pod, remotecommand.StreamOptions{Stdout: &out, Stderr: &complaints}, "sh", "-c", script); err != nil {
		return "", fmt.Errorf("%s: %w: %s", script, err, complaints.String())
	}
	return out.String(), nil
}

// typeOn types on a pod's console until the guest shows that it has read it, or ends.
func typeOn(t *testing.T, n *node.Node, pod *corev1.Pod, keys string) {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	in, typed := io.Pipe()
	defer typed.Close()
	go func() { _, _ = io.WriteString(typed, keys+"\x1d") }() // Ctrl-] detaches
	if err := viaKubelet(ctx, n, pod, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard, Tty: true}); err != nil && ctx.Err() == nil {
		t.Fatalf("type %q on the console of %s: %v", keys, pod.Name, err)
	}
}

// waitState waits for a state of a pod's only container.
func waitState(t *testing.T, n *node.Node, name, what string, holds func(*corev1.Pod, corev1.ContainerStatus) bool) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, name+" "+what, func(ctx context.Context) (err error) {
		if pod, err = n.Pod(ctx, name); err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 1 && holds(pod, pod.Status.ContainerStatuses[0]) {
			return nil
		}
		return fmt.Errorf("phase %s, %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
	})
	return pod
}

// waitBooted waits until the log of a pod's running container has text, and returns
// the pod.
func waitBooted(t *testing.T, n *node.Node, name, text string) *corev1.Pod {
	t.Helper()
	pod := waitState(t, n, name, "runs", func(_ *corev1.Pod, c corev1.ContainerStatus) bool { return c.State.Running != nil })
	restarts := pod.Status.ContainerStatuses[0].RestartCount
	if _, err := node.WaitPodLog(deadline(t), logOf(n, pod, restarts), text); err != nil {
		t.Fatal(err)
	}
	return pod
}

// logOf is the log of a pod's container after so many restarts.
func logOf(n *node.Node, pod *corev1.Pod, restarts int32) string {
	return filepath.Join(filepath.Dir(n.PodLog(pod, pod.Spec.Containers[0].Name)), fmt.Sprintf("%d.log", restarts))
}

// kubeletStream is an answer of kubelet's that goes on.
func kubeletStream(t *testing.T, n *node.Node, path string) io.ReadCloser {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	request, err := http.NewRequestWithContext(deadline(t), http.MethodGet, n.KubeletURL()+path, http.NoBody)
	must(t, err)
	answer, err := (&http.Client{Transport: transport}).Do(request)
	must(t, err)
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		t.Fatalf("kubelet answers %s to %s: %s", answer.Status, path, text)
	}
	return answer.Body
}
