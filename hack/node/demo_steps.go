package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// greeting is on the guest's start page, which also names the host.
const greeting = "tiny"

func (d *demo) startContainer(ctx context.Context) (err error) {
	d.container, err = d.start(ctx, "container-pod.yaml", node.ContainerImage)
	return err
}

func (d *demo) startMachine(ctx context.Context) (err error) {
	d.machine, err = d.start(ctx, "vm-pod.yaml", node.VMImage)
	return err
}

// start runs the pod of an example with an image that this node can pull.
func (d *demo) start(ctx context.Context, example, image string) (*corev1.Pod, error) {
	pod, err := node.LoadPod(filepath.Join(d.n.Checkout(), "examples", example))
	if err != nil {
		return nil, err
	}
	pod.Spec.Containers[0].Image = image
	if err := d.n.Apply(pod); err != nil {
		return nil, err
	}
	return d.n.WaitRunning(ctx, pod.Name)
}

func (d *demo) machineURL() string { return "http://" + d.machine.Status.PodIP + "/" }

func (d *demo) fetchFromHost(ctx context.Context) error {
	return node.Until(ctx, "the guest serves its page", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, d.machineURL())
		if err != nil {
			return err
		}
		return expectPage(string(page))
	})
}

func (d *demo) fetchFromContainer(ctx context.Context) error {
	_, id, ok := strings.Cut(d.container.Status.ContainerStatuses[0].ContainerID, "://")
	if !ok {
		return fmt.Errorf("kubelet reports no container ID for pod %s: %w", d.container.Name, errdefs.ErrNotFound)
	}
	page, err := d.n.RunCrictl(ctx, "exec", id, "wget", "-q", "-O", "-", d.machineURL())
	if err != nil {
		return err
	}
	return expectPage(page)
}

func expectPage(page string) error {
	if !strings.Contains(page, greeting) {
		return fmt.Errorf("the page does not contain %q: %q: %w", greeting, page, errdefs.ErrDataLoss)
	}
	return nil
}

// consoleLines is how much of the console the demo shows.
const consoleLines = 6

// readConsole waits for the login prompt and checks the format of every line.
func (d *demo) readConsole(ctx context.Context) error {
	lines, err := node.WaitPodLog(ctx, d.n.PodLog(d.machine, d.machine.Spec.Containers[0].Name), "login:")
	for _, line := range lines {
		// A guest may print what moves a terminal's cursor.
		if text := strings.TrimSpace(strings.Map(visible, line.Text)); text != "" {
			d.console = append(d.console, text)
		}
	}
	d.console = d.console[max(0, len(d.console)-consoleLines):]
	return err
}

func visible(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return -1
}

func (d *demo) makeTable(ctx context.Context) (err error) {
	d.table, err = d.podTable(ctx)
	return err
}

// remove takes the manifests away, waits until kubelet has stopped both pods,
// and removes the stopped sandboxes, which kubelet's garbage collection would do
// within a minute.
func (d *demo) remove(ctx context.Context) error {
	for _, pod := range []*corev1.Pod{d.container, d.machine} {
		if err := d.n.Delete(strings.TrimSuffix(pod.Name, d.n.PodName(""))); err != nil {
			return err
		}
	}
	err := node.Until(ctx, "kubelet has stopped both pods", func(ctx context.Context) error {
		ready, err := d.n.RunCrictl(ctx, "pods", "--state", "ready", "--quiet")
		if err == nil && strings.TrimSpace(ready) != "" {
			err = fmt.Errorf("sandboxes still run: %s: %w", strings.Fields(ready), errdefs.ErrUnavailable)
		}
		return err
	})
	if err != nil {
		return err
	}
	stopped, err := d.n.RunCrictl(ctx, "pods", "--quiet")
	if err != nil {
		return err
	}
	for id := range strings.FieldsSeq(stopped) {
		if _, err := d.n.RunCrictl(ctx, "rmp", id); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) verifyNothingLeft(ctx context.Context) error {
	return node.Until(ctx, "nothing is left of the pods", func(ctx context.Context) error {
		left, err := d.n.Leftovers(ctx)
		if err == nil && len(left) > 0 {
			err = errors.New(strings.Join(left, "; "))
		}
		return err
	})
}
