//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// fullImage is the tiny guest with Debian's complete kernel, which has 9p and drivers of
// what is no virtio device.
const fullImage = "tiny-full.qcow2"

const ninePReport = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    {
      cat /data/hello /fixed/hello
      touch /fixed/new && echo "a read-only folder was written to"
      mount -o remount,rw /fixed; touch /fixed/new && echo "a read-only folder was remounted and written to"
      cat /data/escape && echo "a link led out of the folder"
      echo kept >/data/kept
      grep -c " 9p " /proc/mounts
    } >/data/report
    sync
    mv /data/report /data/done
`

// openFolder is one that QEMU's user can use, with a file and a link out of it.
func openFolder(t *testing.T, hello string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ambipod-folder") //nolint:usetesting // others must reach it
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.Chmod(dir, 0o777),
		os.WriteFile(filepath.Join(dir, "hello"), []byte(hello+"\n"), 0o644),
		os.WriteFile(secret, []byte("the node's own\n"), 0o644),
		os.Symlink(secret, filepath.Join(dir, "escape")),
	} {
		must(t, err)
	}
	return dir
}

// realDrivers prints the drivers of what the guest's network card, its root disk and
// its drive for cloud-init are attached to.
const realDrivers = `driver() { echo "$1: $(basename "$(readlink -f "$2/driver")")"; }
driver eth0 /sys/class/net/eth0/device
for disk in sda sr0; do driver $disk /sys/class/block/$disk/device/../../../..; done`

// checkWithoutVirtio: the guest boots from SATA, and is reached by a network card that
// its drivers know, as guests with no drivers for virtio must.
func checkWithoutVirtio(t *testing.T, p *pod) {
	t.Helper()
	p.says(t, realDrivers, "eth0: e1000e\nsda: ahci\nsr0: ahci\n")
	url := "http://" + p.ip(t) + "/"
	eventually(t, "the guest answers at its pod's address", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, url)
		if err == nil && !strings.Contains(string(page), p.config.GetHostname()) {
			err = fmt.Errorf("its page is %q", page)
		}
		return err
	})
}

// TestFoldersWithoutVirtiofsd: on a node without virtiofsd QEMU itself serves folders,
// as its own user, and a folder that this user cannot use is refused. The guest has
// neither disks nor a network card of virtio.
func TestFoldersWithoutVirtiofsd(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	t.Cleanup(func() {
		n.SetArgs(node.VMRuntime)
		must(t, n.Restart(context.Background(), node.VMRuntime))
	})
	n.SetArgs(node.VMRuntime, "--virtiofsd", filepath.Join(t.TempDir(), "virtiofsd"))
	must(t, n.Restart(deadline(t), node.VMRuntime))
	image, err := n.ServeGuest(fullImage)
	must(t, err)
	guest := vmKind
	guest.image = image
	c.pull(t, guest)
	data, fixed := openFolder(t, "open"), openFolder(t, "fixed")

	p := &pod{client: c, config: podConfig(t, n, guest), container: containerConfig(guest), kind: guest}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{
		"vm.ambipod.io/user-data": ninePReport,
		"vm.ambipod.io/machine":   "q35", "vm.ambipod.io/disk-bus": "sata", "vm.ambipod.io/nic-model": "e1000e",
	}
	p.container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: data}, {ContainerPath: "/fixed", HostPath: fixed, Readonly: true}}
	must(t, p.tryRun(t))
	if report := waitFile(t, filepath.Join(data, "done")); report != "open\nfixed\n2\n" {
		t.Errorf("the guest says %q", report)
	}
	var kept, hello unix.Stat_t
	must(t, unix.Stat(filepath.Join(data, "kept"), &kept))
	must(t, unix.Stat(filepath.Join(data, "hello"), &hello))
	if kept.Uid == hello.Uid {
		t.Error("the guest's file belongs to root, who QEMU must not be")
	}
	checkWithoutVirtio(t, p)
	p.removeAtEnd(t)

	for what, row := range map[string]struct {
		folder, way string
		says        []string
	}{
		"a folder of root's":        {folderWith(t, ""), "9p", []string{"/data", "setfacl"}},
		"a pod that wants a server": {data, "virtiofs", []string{"qemu-system-common", "--virtiofsd"}},
	} {
		p := &pod{client: c, config: podConfig(t, n, guest), container: containerConfig(guest), kind: guest}
		t.Cleanup(func() { p.removeAtEnd(t) })
		p.config.Annotations = map[string]string{"vm.ambipod.io/folders": row.way}
		p.container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: row.folder}}
		err := p.tryRun(t)
		t.Run(what, func(t *testing.T) { refusal{codes.FailedPrecondition, row.says}.check(t, err) })
		p.removeAtEnd(t)
	}
	nothingLeft(t, n)
}
