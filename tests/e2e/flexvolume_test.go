//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/ambipod/ambipod/tests/node"
)

const flexvolumeReport = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    {
      echo "qcow2: $(grep -c " /ephemeral ext4 rw" /proc/mounts) $(df -m /ephemeral | awk 'END { print ($2 > 300) }')"
      echo "raw: $(cat /raw/hello)"
      echo "subPath: $(cat /etc/injected) $(cat /sub/file)"
      echo "work: $(grep -c " /work ext4 rw" /proc/mounts)"
      head -c 8388608 /dev/urandom >/work/data
    } >/report/unfinished 2>&1
    sync
    mv /report/unfinished /report/done
`

// TestFlexvolumesUnderKubelet: a pod as Virtlet's manuals have it, with volumes of
// Virtlet's driver, which kubelet itself calls; an emptyDir that is a disk; and parts
// of a volume.
func TestFlexvolumesUnderKubelet(t *testing.T) {
	n := kubeletNode(t)
	report := t.TempDir()
	name := strings.Replace(node.VMImage, "vm.ambipod.io/", "virtlet.cloud/", 1)
	pod := examplePod(t, "vm-pod.yaml", "flexible", name)
	pod.Annotations = map[string]string{
		"kubernetes.io/target-runtime": "virtlet.cloud",
		"VirtletCloudInitUserData":     flexvolumeReport,
		"vm.ambipod.io/disks":          "[{volume: work, size: 24Mi}]",
	}
	limit := resource.MustParse("1Gi")
	hostPath := func(path string) corev1.VolumeSource {
		return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}
	}
	flexible := func(options map[string]string) corev1.VolumeSource {
		return corev1.VolumeSource{FlexVolume: &corev1.FlexVolumeSource{Driver: "virtlet/flexvolume_driver", Options: options}}
	}
	for mount, source := range map[string]corev1.VolumeSource{
		"report":    hostPath(report),
		"ephemeral": flexible(map[string]string{"type": "qcow2", "capacity": "400MB"}),
		"raw":       flexible(map[string]string{"type": "raw", "path": partitioned(t), "part": "2"}),
		"work":      {EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}},
	} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: mount, VolumeSource: source})
		machine := &pod.Spec.Containers[0]
		machine.VolumeMounts = append(machine.VolumeMounts, corev1.VolumeMount{Name: mount, MountPath: "/" + mount})
	}
	parts := t.TempDir()
	must(t, os.WriteFile(filepath.Join(parts, "one"), []byte("a file"), 0o600))
	must(t, os.Mkdir(filepath.Join(parts, "two"), 0o700))
	must(t, os.WriteFile(filepath.Join(parts, "two", "file"), []byte("in a folder"), 0o600))
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "parts", VolumeSource: hostPath(parts)})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts,
		corev1.VolumeMount{Name: "parts", MountPath: "/etc/injected", SubPath: "one", ReadOnly: true},
		corev1.VolumeMount{Name: "parts", MountPath: "/sub", SubPath: "two"})
	apply(t, n, pod)
	text := waitFile(t, filepath.Join(report, "done"))
	for _, want := range []string{"qcow2: 1 1\n", "raw: from the second partition\n", "work: 1\n", "subPath: a file in a folder\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the guest does not say %q:\n%s", want, text)
		}
	}
	disks, err := filepath.Glob(filepath.Join(n.KubeletDir(), "pods", "*", "volumes", "kubernetes.io~empty-dir", "work", "*.raw"))
	if err != nil || len(disks) != 1 {
		t.Errorf("disks in the emptyDir: %v, %v", disks, err)
	}

	must(t, n.Delete("flexible"))
	must(t, n.WaitGone(deadline(t), "flexible"))
	nothingLeft(t, n)
	eventually(t, "kubelet has removed the volumes", func(context.Context) error {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err == nil && strings.Contains(string(mounts), "ambipod-flexvolume "+n.Root()) {
			err = fmt.Errorf("a flexvolume is still mounted below %s", n.Root())
		}
		if left, globErr := filepath.Glob(filepath.Join(n.KubeletDir(), "pods", "*", "volumes", "*", "work")); err == nil && (globErr != nil || len(left) > 0) {
			err = fmt.Errorf("left: %v, %w", left, globErr)
		}
		return err
	})
}

// TestBadFlexvolume: what cannot be is said, with the volume's name.
func TestBadFlexvolume(t *testing.T) {
	n := kubeletNode(t)
	pod := examplePod(t, "vm-pod.yaml", "nowhere", node.VMImage)
	pod.Spec.Volumes = []corev1.Volume{{Name: "far", VolumeSource: corev1.VolumeSource{FlexVolume: &corev1.FlexVolumeSource{
		Driver: "virtlet/flexvolume_driver", Options: map[string]string{"type": "ceph", "monitor": "127.0.0.1:6789", "pool": "p"},
	}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "far", MountPath: "/far"}}
	apply(t, n, pod)
	eventually(t, "kubelet tells why the VM cannot be", func(ctx context.Context) error {
		got, err := n.Pod(ctx, "nowhere")
		if err != nil {
			return err
		}
		for _, s := range got.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && strings.Contains(w.Message, "flexvolume far") && strings.Contains(w.Message, `its volume ""`) {
				return nil
			}
		}
		return fmt.Errorf("container statuses: %+v", got.Status.ContainerStatuses)
	})
	must(t, n.Delete("nowhere"))
	nothingLeft(t, n)
}
