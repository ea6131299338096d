//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// Sizes of the test's disks: odd, so that the guest cannot take one for another.
const (
	dataSize = 3 << 20
	readSize = 5 << 20
)

// volumeReport is what the guest finds out about its volumes, told in a file of one
// of them. Each line stands for one thing that must hold.
const volumeReport = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    {
      echo "writable: $(cat /one/data/hello)"
      echo "read-only: $(cat /two/data/hello)"
      touch /two/data/new && echo "a read-only folder was written to"
      mount -o remount,rw /two/data; touch /two/data/new && echo "a read-only folder was remounted and written to"
      touch /two/data/below/new && echo "below a read-only folder was written to"
      cat /one/data/escape /one/data/climb && echo "a link led out of the folder"
      mknod /one/data/null c 1 3 && echo "a device node was made"
      echo "injected: $(cat /etc/injected)"
      echo "disk: $(blockdev --getsize64 /dev/xdata)"
      echo "read-only disk: $(blockdev --getsize64 /dev/sub/ro)"
      head -c 9 /dev/sub/ro
      printf "\nchanged" | dd of=/dev/sub/ro bs=8 count=1 conv=fsync && echo "a read-only disk was written to"
      echo "by guest" | dd of=/dev/xdata bs=9 count=1 conv=fsync && echo "disk written"
      mkdir -p /one/data/folder && echo kept >/one/data/folder/file
      cat /cache/left
      echo "kept by the volume" >/cache/left
      head -c 33554432 /dev/urandom >/scratch/filler && echo "scratch: $(grep -c " /scratch ext4 rw" /proc/mounts)"
      mkfs.ext2 /dev/blank >/dev/null 2>&1; echo "blank: $(blockdev --getsize64 /dev/blank)"
      echo "by guest" >/flex/file && echo "flex: $(grep -c " /flex ext4 rw" /proc/mounts)"
      cat /raw/hello
      touch /raw/new && echo "a read-only flexvolume was written to"
    } >/one/data/report 2>&1
    sync
    mv /one/data/report /one/data/done
    until [ -e /one/data/restarted ]; do sleep 1; done
    echo "still here" >/one/data/still; sync
    mv /one/data/still /one/data/after
`

// volumeDisks are disks of all kinds that the annotation knows.
const volumeDisks = `
- {name: scratch, size: 64Mi, fs: ext4, mountPath: /scratch, cache: none, io: native}
- {name: blank, size: 6Mi, devicePath: /dev/blank, bus: virtio, discard: ignore}
- {volume: cache, size: 32Mi}
- {volume: flex, cache: writeback}
- {devicePath: /dev/xdata, io: threads}
`

// volumeAt is a folder where kubelet has a volume of that kind, on the file system
// of the node's own files.
func volumeAt(t *testing.T, kind, name, options string) string {
	t.Helper()
	top, err := os.MkdirTemp("/var/tmp", "ambipod-volume") //nolint:usetesting // on the node's file system
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := filepath.Join(top, "volumes", kind, name)
	must(t, os.MkdirAll(dir, 0o700))
	if options != "" {
		must(t, os.WriteFile(filepath.Join(dir, "options.json"), []byte(options), 0o600))
	}
	return dir
}

// partitioned is a device whose second partition has a file system with a file.
func partitioned(t *testing.T) string {
	t.Helper()
	const size, start = 16 << 20, 4 << 20
	device, file := loop(t, size, "")
	content := t.TempDir()
	must(t, os.WriteFile(filepath.Join(content, "hello"), []byte("from the second partition\n"), 0o644))
	for _, argv := range [][]string{
		{"sfdisk", "--quiet", "--label", "dos", file},
		{"mke2fs", "-q", "-F", "-t", "ext4", "-d", content, "-E", fmt.Sprintf("offset=%d", start), file, "8M"},
	} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader("start=2048, size=2048\nstart=8192\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", argv, err, out)
		}
	}
	return device
}

// loop attaches a file of that size and content as a block device.
func loop(t *testing.T, size int64, content string) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, []byte(content), 0o600))
	must(t, os.Truncate(file, size))
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("attach a loop device, which takes the package mount and the kernel's loop driver: %v", err)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device, file
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folderWith makes a folder "data" that only root can enter, as kubelet's are.
func folderWith(t *testing.T, hello string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	must(t, os.MkdirAll(filepath.Join(dir, "below"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "hello"), []byte(hello), 0o600))
	return dir
}

// waitFile waits until a guest has written a file.
func waitFile(t *testing.T, path string) string {
	t.Helper()
	var content []byte
	eventually(t, "the guest has written "+path, func(context.Context) (err error) {
		content, err = os.ReadFile(path)
		return err
	})
	return string(content)
}

func TestVolumesReachTheGuest(t *testing.T) {
	// The second pod finds what the first one left: so does a VM that is restarted.
	cache := volumeAt(t, "kubernetes.io~empty-dir", "cache", "")
	for _, bus := range []string{"scsi", "virtio"} {
		t.Run(bus, func(t *testing.T) { volumesReachTheGuest(t, bus, cache) })
	}
}

func volumesReachTheGuest(t *testing.T, bus, cache string) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	one, two, secret := folderWith(t, "one"), folderWith(t, "two"), filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("the node's own"), 0o644))
	must(t, os.Symlink(secret, filepath.Join(one, "escape")))
	must(t, os.Symlink("../../../../../../../../../.."+secret, filepath.Join(one, "climb")))
	injected := filepath.Join(t.TempDir(), "injected")
	must(t, os.WriteFile(injected, []byte("a file"), 0o644))
	data, dataFile := loop(t, dataSize, "")
	readOnly, readFile := loop(t, readSize, "untouched")
	raw := fmt.Sprintf(`{"type":"raw","path":%q,"part":"2","kubernetes.io/readwrite":"ro"}`, partitioned(t))
	// Kubelet names devices by links of its own.
	link := filepath.Join(t.TempDir(), "pvc-1")
	must(t, os.Symlink(data, link))
	before := owner(t, data)

	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{"vm.ambipod.io/user-data": volumeReport, "vm.ambipod.io/disk-bus": bus, "vm.ambipod.io/disks": volumeDisks}
	p.container.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/one/data", HostPath: one},
		{ContainerPath: "/two/data", HostPath: two, Readonly: true},
		{ContainerPath: "/etc/injected", HostPath: injected, Readonly: true},
		{ContainerPath: "/cache", HostPath: cache},
		{ContainerPath: "/flex", HostPath: volumeAt(t, "virtlet~flexvolume_driver", "flex", `{"type":"qcow2","capacity":"40MB"}`)},
		{ContainerPath: "/raw", HostPath: volumeAt(t, "virtlet~flexvolume_driver", "raw", raw)},
	}
	p.container.Devices = []*runtimeapi.Device{
		{ContainerPath: "/dev/xdata", HostPath: link, Permissions: "mrw"},
		{ContainerPath: "/dev/sub/ro", HostPath: readOnly, Permissions: "r"},
	}
	must(t, p.tryRun(t))
	report := waitFile(t, filepath.Join(one, "done"))
	wants := []string{
		"scratch: 1\n", "blank: 6291456\n", "flex: 1\n", "from the second partition\n",
		"writable: one\n", "read-only: two\n", "injected: a file\n", "\nuntouched", "disk written\n",
		fmt.Sprintf("disk: %d\n", dataSize), fmt.Sprintf("read-only disk: %d\n", readSize),
	}
	if bus == "virtio" {
		wants = append(wants, "kept by the volume\n")
	}
	for _, want := range wants {
		if !strings.Contains(report, want) {
			t.Errorf("the guest does not say %q", want)
		}
	}
	for _, wrong := range []string{"was", "led out", "made"} {
		if strings.Contains(report, " "+wrong) {
			t.Errorf("the guest was able to do what it must not")
		}
	}
	if t.Failed() {
		t.Log(report)
	}
	if kept, err := os.ReadFile(filepath.Join(one, "folder", "file")); err != nil || string(kept) != "kept\n" {
		t.Errorf("the guest's file is %q, %v", kept, err)
	}
	for _, file := range []string{filepath.Join(two, "new"), filepath.Join(two, "below", "new"), filepath.Join(one, "null")} {
		if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s exists: %v", file, err)
		}
	}
	serversInGroup(t, n, p.id, 2)
	countsAsWritten(t, p, 32<<20)
	// The folders' servers are nobody's children and go on without vmruntime.
	must(t, n.Restart(deadline(t), node.VMRuntime))
	must(t, os.WriteFile(filepath.Join(one, "restarted"), nil, 0o600))
	if text := waitFile(t, filepath.Join(one, "after")); text != "still here\n" {
		t.Errorf("after a restart of vmruntime the guest says %q", text)
	}

	p.removeAtEnd(t)
	nothingLeft(t, n)
	if after := owner(t, data); after != before {
		t.Errorf("device %s belonged to %s and belongs to %s", data, before, after)
	}
	for file, want := range map[string]string{dataFile: "by guest\n", readFile: "untouched"} {
		content, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(content), want) {
			t.Errorf("%s does not begin with %q: %v", file, want, err)
		}
	}
}

// countsAsWritten checks that the writable layer of a VM includes its further disks:
// the root disk of a guest that has just booted has not grown to that.
func countsAsWritten(t *testing.T, p *pod, least uint64) {
	t.Helper()
	eventually(t, "the VM's writable layer has grown", func(ctx context.Context) error {
		answer, err := p.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: p.id})
		if err != nil {
			return err
		}
		if used := answer.GetStats().GetWritableLayer().GetUsedBytes().GetValue(); used < least {
			return fmt.Errorf("%d bytes of %d", used, least)
		}
		return nil
	})
}

// owner is who may open a file, in words that can be compared.
func owner(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "stat", "--format", "%u:%g %a", path).Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}

// serversInGroup checks that the servers of a VM's folders count as the pod's.
func serversInGroup(t *testing.T, n *node.Node, id string, want int) {
	t.Helper()
	servers := 0
	for _, pid := range membersOf(t, n, id) {
		name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		must(t, err)
		if strings.TrimSpace(string(name)) == "virtiofsd" {
			servers++
		}
	}
	// Each has a process that waits for the confined one.
	if servers != 2*want {
		t.Errorf("%d processes of virtiofsd are in the pod's control group, want %d", servers, 2*want)
	}
}

// membersOf lists the processes in a VM's control group.
func membersOf(t *testing.T, n *node.Node, id string) []string {
	t.Helper()
	_, id, _ = strings.Cut(id, ".") // criproxy's prefix
	for _, hierarchy := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		pids, err := os.ReadFile(filepath.Join(hierarchy, n.Cgroup(), "ambipod-"+id, "cgroup.procs"))
		if err == nil {
			return strings.Fields(string(pids))
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	t.Fatalf("VM %s has no control group", id)
	return nil
}

// hostRootReport tells what of the node reached the guest.
const hostRootReport = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    { cat /data/hello /etc/injected; blockdev --getsize64 /dev/xdata; echo kept >/cache/left; } >/data/report 2>&1
    sync
    mv /data/report /data/done
`

// TestVolumesBelowHostRoot: a vmruntime in a container finds the volumes of pods below
// the folder where it has the node's root directory.
func TestVolumesBelowHostRoot(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	root := t.TempDir()
	t.Cleanup(func() {
		n.SetArgs(node.VMRuntime)
		must(t, n.Restart(context.Background(), node.VMRuntime))
	})
	n.SetArgs(node.VMRuntime, "--host-root", root)
	must(t, n.Restart(deadline(t), node.VMRuntime))

	folder, cache := filepath.Join(root, "srv", "data"), filepath.Join(root, "volumes", "kubernetes.io~empty-dir", "cache")
	device, _ := loop(t, dataSize, "")
	var stat unix.Stat_t
	must(t, unix.Stat(device, &stat))
	for _, err := range []error{
		os.MkdirAll(folder, 0o700), os.MkdirAll(cache, 0o700), os.Mkdir(filepath.Join(root, "dev"), 0o700),
		os.WriteFile(filepath.Join(folder, "hello"), []byte("of a folder\n"), 0o600),
		os.WriteFile(filepath.Join(root, "file"), []byte("of a file\n"), 0o600),
		os.Symlink("/srv/data", filepath.Join(root, "link")), // as it leads on the node
		os.Symlink("/dev/xdata", filepath.Join(root, "pvc-1")),
		unix.Mknod(filepath.Join(root, "dev", "xdata"), unix.S_IFBLK|0o600, int(stat.Rdev)),
	} {
		must(t, err)
	}

	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{"vm.ambipod.io/user-data": hostRootReport, "vm.ambipod.io/disks": "[{volume: cache, size: 8Mi}]"}
	p.container.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: "/link"},
		{ContainerPath: "/etc/injected", HostPath: "/file"},
		{ContainerPath: "/cache", HostPath: "/volumes/kubernetes.io~empty-dir/cache"},
	}
	p.container.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/xdata", HostPath: "/pvc-1", Permissions: "mrw"}}
	must(t, p.tryRun(t))
	want := fmt.Sprintf("of a folder\nof a file\n%d\n", dataSize)
	if report := waitFile(t, filepath.Join(folder, "done")); report != want {
		t.Errorf("the guest says %q, want %q", report, want)
	}
	answer, err := p.ContainerStatus(deadline(t), &runtimeapi.ContainerStatusRequest{ContainerId: p.id})
	must(t, err)
	if path := answer.GetStatus().GetMounts()[0].GetHostPath(); path != "/link" {
		t.Errorf("kubelet is told that it mounts %s", path)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
	if info, err := os.Stat(filepath.Join(cache, "ambipod-disk.raw")); err != nil || info.Size() != 8<<20 {
		t.Errorf("the disk of the emptyDir: %v, %v", info, err)
	}
}

// bootReport tells whether the root disk is as the image has it, or has been used.
const bootReport = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    if [ -e /used ]; then cp /used /report/second; else echo "by the first VM" >/used; sync; cp /used /report/first; fi
    df -m / | tail -n 1 >/report/size
    cat /etc/injected/* >/report/injected
    sync
    touch /report/done
`

// TestPersistentRoot: a second pod finds what the first one wrote to its root disk,
// and files that are injected are added to it.
func TestPersistentRoot(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	const size = 400 << 20
	device, _ := loop(t, size, "")
	injected := ""
	for _, want := range []string{"first", "second"} {
		report := t.TempDir()
		files := newConfigMap(t, "files", map[string]string{"f": "by the " + want + "\n", "f_path": "/etc/injected/" + want, "f_encoding": "plain"})
		injected += "by the " + want + "\n"
		p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
		t.Cleanup(func() { p.removeAtEnd(t) })
		p.config.Annotations = map[string]string{"vm.ambipod.io/user-data": bootReport, "VirtletFilesFromDataSource": "configmap/files"}
		p.container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/report", HostPath: report}, {ContainerPath: "/files", HostPath: files.dir}}
		p.container.Devices = []*runtimeapi.Device{{ContainerPath: "/", HostPath: device, Permissions: "mrw"}}
		must(t, p.tryRun(t))
		waitFile(t, filepath.Join(report, "done"))
		if text := waitFile(t, filepath.Join(report, want)); text != "by the first VM\n" {
			t.Errorf("the %s VM says %q", want, text)
		}
		if text := waitFile(t, filepath.Join(report, "injected")); text != injected {
			t.Errorf("the %s VM has the injected files %q, want %q", want, text, injected)
		}
		// Larger than the image, which has 112 MiB: the guest has grown it.
		var mebibytes int
		if fields := strings.Fields(waitFile(t, filepath.Join(report, "size"))); len(fields) > 1 {
			_, err := fmt.Sscan(fields[1], &mebibytes)
			must(t, err)
		}
		if mebibytes < 300 {
			t.Errorf("the root file system has %d MiB on a device of %d bytes", mebibytes, size)
		}
		must(t, p.remove(deadline(t), 30))
		p.removeAtEnd(t)
	}
	nothingLeft(t, n)
}
