//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/diskusage"
	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// TestKubeletRemovesUnusedImages has kubelet's own garbage collection remove a VM image
// that is too old for it, and its bytes, but not one in use. kubelet looks when it
// starts; for a full disk it would only look five minutes later, and then remove images
// in the same way.
func TestKubeletRemovesUnusedImages(t *testing.T) {
	config := nodeConfig(t, "gc")
	config.Kubelet = map[string]any{"imageMinimumGCAge": "1ns", "imageMaximumGCAge": "2ns"} // 0 is kubelet's default
	config.StateBytes, config.StateXFS = 1<<30, true
	n := startShared(t, "gc", config)
	serveSector(t, n)
	c := dial(t, n)
	apply(t, n, sectorPod(t, "keeps-image", corev1.RestartPolicyAlways))
	waitBooted(t, n, "keeps-image", bootsector.Ready)
	// The file system lets the VM's root disk share blocks with its raw image.
	clones, err := filepath.Glob(filepath.Join(n.VMStateDir(), "vms", "*", "root.raw"))
	if err != nil || len(clones) != 1 {
		t.Errorf("clones of the image: %q, %v; want one", clones, err)
	}
	c.pull(t, vmKind)
	unused, err := imageOf(deadline(t), c, node.VMImage)
	must(t, err)
	file := filepath.Join(n.VMStateDir(), "images", "data", strings.TrimPrefix(unused.GetId(), "vm."))
	info, err := os.Stat(file)
	must(t, err)
	before, err := diskusage.Measure(n.VMStateDir())
	must(t, err)
	must(t, n.Restart(deadline(t), node.Kubelet))
	eventually(t, "kubelet has removed the unused VM image", func(ctx context.Context) error {
		image, err := imageOf(ctx, c, node.VMImage)
		if err == nil && image != nil {
			err = errors.New("it is still there")
		}
		return err
	})
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the removed image's file: %v", err)
	}
	after, err := diskusage.Measure(n.VMStateDir())
	must(t, err)
	if freed := int64(before.Bytes) - int64(after.Bytes); freed < info.Size()*9/10 {
		t.Errorf("%d bytes were freed, want about %d", freed, info.Size())
	}
	// The VM still has its disk, and another can be made from the image.
	if kept, err := imageOf(deadline(t), c, sectorImage); err != nil || kept == nil {
		t.Errorf("the image in use: %v, %v", kept, err)
	}
	pod := waitBooted(t, n, "keeps-image", bootsector.Ready) // the new kubelet has looked at it
	typeOn(t, n, pod, bootsector.Write)
	if _, err := node.WaitPodLog(deadline(t), logOf(n, pod, 0), "WROTE"); err != nil {
		t.Error(err)
	}
	must(t, n.Delete("keeps-image"))
	must(t, n.WaitGone(deadline(t), "keeps-image"))
}

// imageOf is what ListImages says of a name, nil if nothing.
func imageOf(ctx context.Context, c client, name string) (*runtimeapi.Image, error) {
	answer, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}})
	if err != nil || len(answer.GetImages()) == 0 {
		return nil, err
	}
	if len(answer.GetImages()) > 1 {
		return nil, fmt.Errorf("%d images are called %s", len(answer.GetImages()), name)
	}
	return answer.GetImages()[0], nil
}
