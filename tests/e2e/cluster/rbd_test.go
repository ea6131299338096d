//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
)

// onCeph applies the examples whose volumes are RBD images, as they are. deploy/rbd.yaml
// makes them volumes of a CSI driver: here, in place of Ceph's, that of the node, whose
// volume has the image's name.
func (e examples) onCeph(t *testing.T) {
	const (
		root, block = "cirros-vm-persistent-rootfs-rbd.yaml", "ubuntu-vm-rbd-block-pv.yaml"
		image       = "tstimg"
	)
	e.dropped(t, root)
	e.translateRBD(t, root)
	// What an administrator of Ceph has made.
	e.kubectl(t, "create", "secret", "generic", "ceph-admin", "--from-literal=userID=admin", "--from-literal=userKey=key")
	t.Cleanup(func() { atEnd(t, "delete", "secret", "ceph-admin", "--namespace", e.name) })
	must(t, os.WriteFile(storage.Volume(image), nil, 0o600))
	must(t, os.Truncate(storage.Volume(image), 1000<<20))
	for _, one := range []example{
		{root, "cirros-vm-pr", "echo kept >/root/first && sync && cat /root/first", "kept"},
		{root, "cirros-vm-pr", "cat /root/first", "kept"},
		{block, "ubuntu-vm-rdb-block-pv", "awk '$2 == \"/mnt\" { print $3 }' /proc/mounts", "ext4"},
	} {
		if one.file == block {
			// Its disk is another, which has a file system.
			command(t, "mkfs.ext4", "-q", "-F", storage.Volume(image))
		}
		e.apply(t, one.file)
		e.check(t, one)
		e.remove(t, one.file)
		eventually(t, "the disk is detached", func(ctx context.Context) error { return detached(ctx, storage.Volume(image)) })
	}
}

// dropped shows that stock Kubernetes has no such volumes any more.
func (e examples) dropped(t *testing.T, file string) {
	t.Helper()
	e.apply(t, file)
	eventually(t, "kubelet has no plugin for the volume", func(ctx context.Context) error {
		return fixture.HasEvent(ctx, shared, e.name, "cirros-vm-pr", "no volume plugin matched")
	})
	e.remove(t, file)
}

// translateRBD applies deploy/rbd.yaml and waits until it takes effect.
func (e examples) translateRBD(t *testing.T, file string) {
	t.Helper()
	const settings = "ambipod-rbd"
	policy := filepath.Join(shared.Node().Checkout(), "deploy", "rbd.yaml")
	t.Cleanup(func() {
		atEnd(t, "delete", "-f", policy)
		atEnd(t, "delete", "configmap", settings, "--namespace", "kube-system")
	})
	kubectl(t, "create", "configmap", settings, "--namespace", "kube-system", "--from-literal=driver="+driverName, "--from-literal=clusterID=ceph")
	kubectl(t, "apply", "-f", policy)
	want := translated + `    nodeStageSecretRef:
      name: ceph-admin
      namespace: default
    volumeAttributes:
      clusterID: ceph
      imageFeatures: layering
      pool: kube
      staticVolume: "true"
    volumeHandle: tstimg
  persistentVolumeReclaimPolicy: Retain
`
	eventually(t, "an RBD volume becomes one of the driver", func(ctx context.Context) error {
		return e.makes(ctx, e.file(file), want)
	})
	for source, want := range map[string]string{
		`{image: a, monitors: ["192.0.2.1:6789"], fsType: xfs, readOnly: true, user: reader}`: `    fsType: xfs
    readOnly: true
    volumeAttributes:
      clusterID: ceph
      imageFeatures: layering
      pool: rbd
      staticVolume: "true"
    volumeHandle: a
`,
		`{image: b, monitors: ["192.0.2.1:6789"], secretRef: {name: key, namespace: safe}}`: `    nodeStageSecretRef:
      name: key
      namespace: safe
`,
	} {
		manifest := fixture.Manifest(t, `
apiVersion: v1
kind: PersistentVolume
metadata: {name: other}
spec:
  accessModes: [ReadOnlyMany]
  capacity: {storage: 1Gi}
  rbd: `+source)
		if err := e.makes(deadline(t), manifest, translated+want); err != nil {
			t.Error(err)
		}
	}
}

// translated is how the source of a volume begins which deploy/rbd.yaml has translated.
const translated = `
  csi:
    driver: ` + driverName + `
`

// makes returns nil if the API server would make what a manifest describes with this text
// in it, and without RBD.
func (e examples) makes(ctx context.Context, manifest, want string) error {
	made, err := shared.Kubectl(ctx, "--namespace", e.name, "create", "--dry-run=server", "-f", manifest, "-o", "yaml")
	if err == nil && (!strings.Contains(made, want) || strings.Contains(made, "rbd:")) {
		err = fmt.Errorf("of RBD volumes comes this, without %q:\n%s", want, made)
	}
	return err
}
