//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/hostpath"
)

// driverName is that of the CSI driver of the cluster's node.
const driverName = "hostpath.vm.ambipod.io"

// storage is that driver.
var storage *hostpath.Driver

// startStorage gives the cluster the storage class csi-hostpath.
func startStorage(ctx context.Context) error {
	dir, err := os.MkdirTemp("/var/tmp", "ambipod-csi-")
	if err != nil {
		return err
	}
	n := shared.Node()
	storage, err = hostpath.Start(ctx, hostpath.Config{
		Name: driverName, Node: n.Name(), Dir: dir, Plugins: filepath.Join(n.KubeletDir(), "plugins_registry"),
	})
	if err != nil {
		return err
	}
	if err := shared.AddStorage(ctx, driverName, storage.Socket()); err != nil {
		return errors.Join(err, storage.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

// TestProvisionedVolumes: a CSI driver makes a raw device and a file system for claims.
// A VM uses both, the next pod finds what it wrote, and they go with the claims.
func TestProvisionedVolumes(t *testing.T) {
	t.Parallel()
	const pod, file = "pod/with-made-volumes", "csi.yaml"
	s := newSpace(t)
	s.apply(t, file)
	s.wait(t, "condition=Ready", pod)
	const look = "blockdev --getsize64 /dev/data; head -c 7 /dev/data; cat /srv/files/note; grep -c ' /srv/files virtiofs ' /proc/mounts"
	s.inGuest(t, pod, "printf 'on disk' | dd of=/dev/data conv=fsync 2>/dev/null; echo ' and in a file' >/srv/files/note; sync")
	s.kubectl(t, "delete", pod)
	s.apply(t, file)
	s.wait(t, "condition=Ready", pod)
	if got := s.inGuest(t, pod, look); got != "16777216\non disk and in a file\n1\n" {
		t.Errorf("%s\nin the guest of the next pod prints %q", look, got)
	}
	volumes := strings.Fields(s.kubectl(t, "get", "persistentvolumeclaims", "-o", "jsonpath={.items[*].spec.volumeName}"))
	if len(volumes) != 2 { //nolint:mnd // a device and a file system
		t.Fatalf("the claims have the volumes %q", volumes)
	}
	s.kubectl(t, "delete", "-f", examplePath(file))
	for _, name := range volumes {
		eventually(t, "nothing is left of volume "+name, func(ctx context.Context) error { return hasGone(ctx, name) })
	}
}

// hasGone looks for a volume in the API, in the driver's folder and among the machine's
// loop devices, where kubelet has its own.
func hasGone(ctx context.Context, volume string) error {
	var object struct{}
	if err := shared.Get(ctx, "/api/v1/persistentvolumes/"+volume, &object); !errdefs.IsNotFound(err) {
		return errors.Join(err, fmt.Errorf("persistentvolume/%s is there: %w", volume, errdefs.ErrFailedPrecondition))
	}
	if _, err := os.Lstat(storage.Volume(volume)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("the driver has volume %s: %w", volume, errdefs.ErrFailedPrecondition))
	}
	return detached(ctx, volume)
}

// detached looks for loop devices whose files have a text in their name.
func detached(ctx context.Context, text string) error {
	out, err := exec.CommandContext(ctx, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").Output()
	if err == nil && strings.Contains(string(out), text) {
		err = fmt.Errorf("%s is among the loop devices %q: %w", text, out, errdefs.ErrFailedPrecondition)
	}
	return err
}

// TestNoBlockDevicesOfHostPath: the provisioner of host paths that is part of Kubernetes
// has no raw devices, which is why TestProvisionedVolumes has another.
func TestNoBlockDevicesOfHostPath(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.applyText(t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: hostpath
  resources: {requests: {storage: 1Mi}}
`)
	eventually(t, "the claim's event says why it has no volume", func(ctx context.Context) error {
		return fixture.HasEvent(ctx, shared, s.name, "raw", "does not support block volume provisioning")
	})
}
