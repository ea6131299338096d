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

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manyDisks is what a VM can have beside its root disk.
const manyDisks = 24

// configMap is a volume as kubelet fills it: a link says which contents count.
type configMap struct{ dir string }

func newConfigMap(t *testing.T, name string, data map[string]string) configMap {
	t.Helper()
	c := configMap{volumeAt(t, "kubernetes.io~configmap", name, "")}
	for key := range data {
		must(t, os.Symlink(filepath.Join("..data", key), filepath.Join(c.dir, key)))
	}
	c.fill(t, data)
	return c
}

// fill changes all contents at once.
func (c configMap) fill(t *testing.T, data map[string]string) {
	t.Helper()
	contents, err := os.MkdirTemp(c.dir, "..") //nolint:usetesting // as kubelet's atomic writer does
	must(t, err)
	for key, text := range data {
		must(t, os.WriteFile(filepath.Join(contents, key), []byte(text), 0o644))
	}
	next := filepath.Join(c.dir, "..data_tmp")
	must(t, os.Symlink(filepath.Base(contents), next))
	must(t, os.Rename(next, filepath.Join(c.dir, "..data")))
}

// sharedFolder is one whose mounts spread, as those of a node's root directory do.
func sharedFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	must(t, os.Mkdir(filepath.Join(dir, "below"), 0o700))
	return dir
}

// says waits until a script in the guest says something.
func (p *pod) says(t *testing.T, script, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the guest's %q says %q", script, want), func(ctx context.Context) error {
		answer, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"sh", "-c", script}})
		if err == nil && string(answer.GetStdout()) != want {
			err = fmt.Errorf("it says %q and %q", answer.GetStdout(), answer.GetStderr())
		}
		return err
	})
}

// TestRunningGuest: a guest has as many disks as there can be, each at its path at
// every boot, and sees in its folders what changes on the node while it runs.
func TestRunningGuest(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	var disks, sizes strings.Builder
	for i := range manyDisks {
		bus := []string{"scsi", "virtio"}[i%2]
		fmt.Fprintf(&disks, "- {name: d%d, size: %dMi, devicePath: /dev/by-pod/%02d, bus: %s}\n", i, i+1, i, bus)
		fmt.Fprintf(&sizes, "%d\n", (i+1)<<20)
	}
	settings, shared := newConfigMap(t, "settings", map[string]string{"key": "old"}), sharedFolder(t)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{"vm.ambipod.io/disks": disks.String(), "vm.ambipod.io/config-volumes": "mount"}
	p.container.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/config", HostPath: settings.dir, Readonly: true},
		{ContainerPath: "/follows", HostPath: shared, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{ContainerPath: "/stays", HostPath: shared},
	}
	must(t, p.tryRun(t))

	const listSizes = `for disk in /dev/by-pod/*; do blockdev --getsize64 "$disk"; done`
	p.says(t, listSizes, sizes.String())
	p.says(t, "cat /config/key", "old")
	settings.fill(t, map[string]string{"key": "new"})
	p.says(t, "cat /config/key", "new")

	below := filepath.Join(shared, "below")
	must(t, unix.Mount("ambipod-test", below, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() {
		if err := unix.Unmount(below, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	must(t, os.WriteFile(filepath.Join(below, "file"), []byte("mounted later"), 0o600))
	p.says(t, "cat /follows/below/file", "mounted later")
	p.says(t, "ls /stays/below", "")

	boot := string(p.sync(t, "cat /proc/sys/kernel/random/boot_id; reboot").GetStdout())
	eventually(t, "the guest has booted again", func(ctx context.Context) error {
		answer, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"cat", "/proc/sys/kernel/random/boot_id"}})
		if err == nil && string(answer.GetStdout()) == boot {
			err = errors.New("it is the same boot")
		}
		return err
	})
	// Linux, and then the firmware, reset the machine several times for it.
	status, err := p.ContainerStatus(deadline(t), &runtimeapi.ContainerStatusRequest{ContainerId: p.id, Verbose: true})
	must(t, err)
	if reboots := status.GetInfo()["reboots"]; reboots != "1" {
		t.Errorf("one reboot is counted %s times", reboots)
	}
	p.says(t, listSizes, sizes.String())
	p.says(t, "cat /config/key /follows/below/file", "newmounted later")
	p.removeAtEnd(t)
	nothingLeft(t, n)
}
