//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// examplePod is a manifest of examples/ with a name of the test's and an image
// that the node can pull.
func examplePod(t *testing.T, file, name, image string) *corev1.Pod {
	t.Helper()
	pod, err := node.LoadPod("../../examples/" + file)
	if err != nil {
		t.Fatal(err)
	}
	pod.Name = name
	pod.Spec.Containers[0].Image = image
	return pod
}

// apply hands a pod to kubelet; it is taken away when the test ends.
func apply(t *testing.T, n *node.Node, pod *corev1.Pod) {
	t.Helper()
	t.Cleanup(func() {
		if err := n.Delete(pod.Name); err != nil {
			t.Error(err)
		}
	})
	if err := n.Apply(pod); err != nil {
		t.Fatal(err)
	}
}

func waitRunning(t *testing.T, n *node.Node, name string) *corev1.Pod {
	t.Helper()
	pod, err := n.WaitRunning(deadline(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// page waits until a pod serves a page that contains text.
func waitPage(t *testing.T, pod *corev1.Pod, text string) {
	t.Helper()
	eventually(t, "pod "+pod.Name+" serves its page", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, "http://"+pod.Status.PodIP+"/")
		if err == nil && !strings.Contains(string(page), text) {
			err = fmt.Errorf("the page does not contain %q: %q", text, page)
		}
		return err
	})
}

func TestOneKubeletRunsBothKindsOfPod(t *testing.T) {
	n := kubeletNode(t)
	apply(t, n, examplePod(t, "container-pod.yaml", "both-container", node.ContainerImage))
	apply(t, n, examplePod(t, "vm-pod.yaml", "both-vm", node.VMImage))
	container, vm := waitRunning(t, n, "both-container"), waitRunning(t, n, "both-vm")

	waitPage(t, container, "container")
	waitPage(t, vm, vm.Name)
	_, id, _ := strings.Cut(container.Status.ContainerStatuses[0].ContainerID, "://")
	if page := crictl(t, n, "exec", id, "wget", "-q", "-O", "-", "http://"+vm.Status.PodIP+"/"); !strings.Contains(page, vm.Name) {
		t.Errorf("the VM's page from inside the container pod is %q, want %q in it", page, vm.Name)
	}
	if _, err := node.WaitPodLog(deadline(t), n.PodLog(vm, "machine"), "login:"); err != nil {
		t.Error(err)
	}
	t.Run("kubelet serves the console as log", func(t *testing.T) {
		url := fmt.Sprintf("%s/containerLogs/default/%s/machine", n.KubeletURL(), vm.Name)
		log, err := node.Fetch(deadline(t), url)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "login:") {
			t.Errorf("no login prompt in kubelet's log of the VM:\n%s", log)
		}
	})
	t.Run("kubelet has statistics of both", func(t *testing.T) {
		eventually(t, "kubelet's summary has memory figures of both pods", func(ctx context.Context) error {
			return summaryHas(ctx, n, container.Name, vm.Name)
		})
	})

	// Nobody helps kubelet to remove them; its garbage collection runs once a minute.
	for _, name := range []string{"both-container", "both-vm"} {
		if err := n.Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, n)
	for _, pod := range []*corev1.Pod{container, vm} {
		log := n.PodLog(pod, pod.Spec.Containers[0].Name)
		eventually(t, "the log folder of "+pod.Name+" is gone", func(context.Context) error {
			if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w", log, err)
			}
			return nil
		})
	}
}

func TestKubeletRestartsAVMThatPowersOff(t *testing.T) {
	n := kubeletNode(t)
	pod := examplePod(t, "vm-pod.yaml", "poweroff", node.VMImage)
	pod.Annotations["vm.ambipod.io/user-data"] = "#cloud-config\nruncmd:\n- [sh, -c, 'sleep 1; poweroff']\n"
	apply(t, n, pod)
	eventually(t, "kubelet has restarted the VM", func(ctx context.Context) error {
		got, err := n.Pod(ctx, pod.Name)
		if err != nil {
			return err
		}
		for _, s := range got.Status.ContainerStatuses {
			if s.RestartCount > 0 && s.LastTerminationState.Terminated != nil {
				return nil
			}
		}
		return fmt.Errorf("container statuses: %+v", got.Status.ContainerStatuses)
	})
	if err := n.Delete(pod.Name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, n)
}

// summaryHas reads kubelet's summary as metrics servers do.
func summaryHas(ctx context.Context, n *node.Node, pods ...string) error {
	data, err := node.Fetch(ctx, n.KubeletURL()+"/stats/summary")
	if err != nil {
		return err
	}
	var summary struct {
		Pods []struct {
			PodRef struct {
				Name string `json:"name"`
			} `json:"podRef"`
			Containers []struct {
				Memory struct {
					WorkingSetBytes uint64 `json:"workingSetBytes"`
				} `json:"memory"`
			} `json:"containers"`
		} `json:"pods"`
	}
	if err := json.Unmarshal(data, &summary); err != nil {
		return err
	}
	used := map[string]uint64{}
	for _, p := range summary.Pods {
		for _, c := range p.Containers {
			used[p.PodRef.Name] += c.Memory.WorkingSetBytes
		}
	}
	for _, pod := range pods {
		if used[pod] == 0 {
			return fmt.Errorf("no memory of pod %s in %v", pod, used)
		}
	}
	return nil
}
