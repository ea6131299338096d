package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// maxPage bounds what is read of kubelet's answers.
const maxPage = 16 << 20

// LoadPod reads a manifest. A field that no Pod has is an error.
func LoadPod(path string) (*corev1.Pod, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	pod := new(corev1.Pod)
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w: %w", path, errdefs.ErrInvalidArgument, err)
	}
	return pod, nil
}

// Apply makes the pod a static pod of the node, or changes it.
func (n *Node) Apply(pod *corev1.Pod) error {
	data, err := yaml.Marshal(pod)
	if err != nil {
		return fmt.Errorf("write manifest of pod %s: %w", pod.Name, err)
	}
	// kubelet does not look at names with a leading dot.
	unfinished := filepath.Join(n.ManifestDir(), "."+pod.Name+".yaml")
	if err := os.WriteFile(unfinished, data, 0o600); err != nil {
		return fmt.Errorf("write manifest of pod %s: %w", pod.Name, err)
	}
	if err := os.Rename(unfinished, n.manifest(pod.Name)); err != nil {
		return fmt.Errorf("write manifest of pod %s: %w", pod.Name, err)
	}
	return nil
}

// Delete takes the manifest away; kubelet then stops the pod.
func (n *Node) Delete(name string) error {
	if err := os.Remove(n.manifest(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove manifest of pod %s: %w", name, err)
	}
	return nil
}

func (n *Node) manifest(pod string) string { return filepath.Join(n.ManifestDir(), pod+".yaml") }

// Pods is kubelet's own list of pods, with their states.
func (n *Node) Pods(ctx context.Context) ([]corev1.Pod, error) {
	data, err := fetch(ctx, n.KubeletURL()+"/pods", maxPage)
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read kubelet's list of pods: %w", err)
	}
	return list.Items, nil
}

// Pod is what kubelet says about the pod with that name in its manifest. It is
// errdefs.ErrNotFound when kubelet does not know it (any more).
func (n *Node) Pod(ctx context.Context, name string) (*corev1.Pod, error) {
	pods, err := n.Pods(ctx)
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if pod.Name == n.PodName(name) {
			return &pod, nil
		}
	}
	return nil, fmt.Errorf("kubelet has no pod %s: %w", n.PodName(name), errdefs.ErrNotFound)
}

// PodName is how kubelet calls the static pod of that name in its manifest.
func (n *Node) PodName(name string) string { return name + "-" + n.cfg.Name }

// WaitRunning returns the pod when kubelet says that it is Running and each of
// its containers is ready.
func (n *Node) WaitRunning(ctx context.Context, name string) (*corev1.Pod, error) {
	var pod *corev1.Pod
	err := Until(ctx, "pod "+name+" is running", func(ctx context.Context) (err error) {
		if pod, err = n.Pod(ctx, name); err != nil {
			return err
		}
		return notRunning(pod)
	})
	return pod, err
}

// notRunning says what keeps the pod from being Running.
func notRunning(pod *corev1.Pod) error {
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Message != "" {
			return fmt.Errorf("container %s of pod %s waits: %s: %s: %w", c.Name, pod.Name, w.Reason, w.Message, errdefs.ErrUnavailable)
		}
		if !c.Ready {
			return fmt.Errorf("container %s of pod %s is not ready: %w", c.Name, pod.Name, errdefs.ErrUnavailable)
		}
	}
	if pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" || len(pod.Status.ContainerStatuses) == 0 {
		return fmt.Errorf("pod %s is %q with IP %q: %s: %w", pod.Name, pod.Status.Phase, pod.Status.PodIP,
			pod.Status.Message, errdefs.ErrUnavailable)
	}
	return nil
}

// WaitGone returns when kubelet does not know the pod any more.
func (n *Node) WaitGone(ctx context.Context, name string) error {
	return Until(ctx, "pod "+name+" is gone", func(ctx context.Context) error {
		_, err := n.Pod(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("kubelet still has pod %s: %w", name, errdefs.ErrUnavailable)
	})
}

// PodLog is the file with the output of a pod's container, for its first start.
func (n *Node) PodLog(pod *corev1.Pod, container string) string {
	// The UID in status is that of the mirror; the folder has the file source's.
	uid := string(pod.UID)
	return filepath.Join(n.PodLogDir(), pod.Namespace+"_"+pod.Name+"_"+uid, container, "0.log")
}
