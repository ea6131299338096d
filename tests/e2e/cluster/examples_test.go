//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

// shown is a file of examples/, one of its pods, and what a script in the pod's guest
// prints in the end. One without a script has a guest that runs none. See, if set, looks
// at the VM from outside.
type shown struct {
	file, pod    string
	script, want string
	see          func(s space, t *testing.T, pod string)
}

// atOnce is how many VMs boot together, beside those of other tests.
const atOnce = 2

// TestExamples applies examples and looks at each VM from inside.
func TestExamples(t *testing.T) {
	t.Parallel()
	claimsGo(t)
	s := newSpace(t)
	nameImages(t)
	for batch := range slices.Chunk(slices.Concat(usualExamples(), rareExamples()), atOnce) {
		remove := []string{"delete", "pod", "--grace-period=5", "--ignore-not-found", "--wait=false"}
		for _, e := range batch {
			s.apply(t, e.file)
			remove = append(remove, e.pod)
		}
		for _, e := range batch {
			t.Run(e.pod, func(t *testing.T) { s.show(t, e) })
		}
		s.kubectl(t, remove...)
	}
}

// show waits until a VM is what its example says.
func (s space) show(t *testing.T, e shown) {
	s.wait(t, "condition=Ready", "pod/"+e.pod)
	if e.script != "" {
		s.prints(t, e.pod, e.script, e.want)
	}
	if e.see != nil {
		e.see(s, t, e.pod)
	}
}

func usualExamples() []shown {
	return []shown{
		{
			file: "config.yaml", pod: "configured",
			script: `cat /etc/settings/colour /etc/credentials/token /etc/motd; echo " $colour"`,
			want:   "greensesamemade by cloud-init\n green\n",
		},
		{
			file: "disks.yaml", pod: "many-disks",
			script: `df -m / | awk 'NR == 2 {print ($2 > 150)}'; df /scratch /cache | awk 'NR > 1 {print $6}'; blockdev --getsize64 /dev/raw-disk`,
			want:   "1\n/scratch\n/cache\n33554432\n",
		},
		{
			file: "volumes.yaml", pod: "with-folders",
			script: `echo kept >/scratch/file && cat /scratch/file; test -s /zones/UTC && echo zones; touch /zones/new 2>/dev/null || echo read-only`,
			want:   "kept\nzones\nread-only\n",
		},
		{
			file: "cloud-init.yaml", pod: "first-booted",
			script: "hostname; cat /root/by-script /etc/motd; grep -c you@example /root/.ssh/authorized_keys",
			want:   "chosen\nscripted\nBe careful.\n1\n",
		},
		{
			file: "hardware.yaml", pod: "equipped",
			script: `cd /sys/class/dmi/id; cat product_serial product_uuid; grep -c ^processor /proc/cpuinfo; ls -d /dev/tpm0 /sys/block/vda; grep -l 0x25ab /sys/bus/pci/devices/*/device | wc -l`,
			want:   "machine-7\n53008994-44c0-4017-ad44-9c49758083da\n2\n/dev/tpm0\n/sys/block/vda\n1\n",
		},
		{
			file: "network.yaml", pod: "networked",
			script: "hostname; cat /etc/resolv.conf | sort",
			want:   "desk\nnameserver 192.0.2.53\nsearch office.example\n",
			see:    space.hostPort,
		},
		{
			file: "pvc.yaml", pod: "with-files",
			script: "echo here >/srv/files/where && cat /srv/files/where; mount | grep -o 'on /srv/files type virtiofs'",
			want:   "here\non /srv/files type virtiofs\n",
			see:    space.keepsFiles,
		},
	}
}

// keepsFiles finds what the VM wrote among the node's files, with which it goes.
func (s space) keepsFiles(t *testing.T, _ string) {
	volume := s.kubectl(t, "get", "persistentvolumeclaim", "files", "-o", "jsonpath={.spec.volumeName}")
	folder := s.kubectl(t, "get", "persistentvolume", volume, "-o", "jsonpath={.spec.hostPath.path}")
	if got, err := os.ReadFile(filepath.Join(folder, "where")); string(got) != "here\n" || !strings.HasPrefix(folder, shared.Node().Root()+"/") {
		t.Errorf("%s has %q (%v), want what the guest wrote, below %s", folder, got, err, shared.Node().Root())
	}
}

// hostPort reaches the VM at its node's address.
func (s space) hostPort(t *testing.T, pod string) {
	eventually(t, "the VM answers at the node's port", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, "http://"+shared.Node().IP().String()+":8080/")
		if err == nil && !strings.Contains(string(page), "desk") {
			err = fmt.Errorf("the page of %s is %q", pod, page)
		}
		return err
	})
}

// TestLocalVolumes gives VMs volumes of one node: a raw device and a folder.
func TestLocalVolumes(t *testing.T) {
	t.Parallel()
	device, file := loop(t, "written on the node", 16<<20)
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "file"), []byte("from the node"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSpace(t)
	s.localVolume(t, "local-disks", "Block", device)
	s.localVolume(t, "local-folders", "Filesystem", folder)
	s.apply(t, "block.yaml")
	example, err := os.ReadFile(examplePath("pvc.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.applyText(t, strings.Replace(string(example), "spec:\n", "spec:\n  storageClassName: local-folders\n", 1))

	s.wait(t, "condition=Ready", "pod/with-disk")
	const text = "written in the guest"
	if got := s.inGuest(t, "pod/with-disk", "head -c 19 /dev/data; printf '"+text+"' | dd of=/dev/data conv=fsync 2>/dev/null"); got != "written on the node" {
		t.Errorf("the guest reads %q from its disk", got)
	}
	if got, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(got), text) {
		t.Errorf("the device has %.30q (%v), want what the guest wrote", got, err)
	}
	s.wait(t, "condition=Ready", "pod/with-files")
	if got := s.inGuest(t, "pod/with-files", "cat /srv/files/file; echo back >/srv/files/answer"); got != "from the node" {
		t.Errorf("the guest reads %q from its folder", got)
	}
	if got, err := os.ReadFile(filepath.Join(folder, "answer")); err != nil || string(got) != "back\n" {
		t.Errorf("the folder has %q (%v), want what the guest wrote", got, err)
	}
}

// TestPersistentRoot boots a pod, and then another, from one disk. The disk was made from
// another image before: the pod that wants it is refused, unless it says that all may be lost.
func TestPersistentRoot(t *testing.T) {
	t.Parallel()
	device, _ := loop(t, "", 160<<20)
	s := newSpace(t)
	const image = "persistent-root.raw"
	must(t, bootsector.WriteDisk(deadline(t), filepath.Join(shared.Node().SiteDir(), image)))
	must(t, shared.Node().TranslateImages("persistent-root", []byte("translations: [{name: sector, url: http://127.0.0.1/"+image+"}]")))
	s.localVolume(t, "local-root-disks", "Block", device)
	const pod = "pod/pet"
	example, err := os.ReadFile(examplePath("root-disk.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.applyText(t, strings.Replace(string(example), "vm.ambipod.io/tiny", "vm.ambipod.io/sector", 1))
	s.logs(t, "pet", bootsector.Ready)
	s.kubectl(t, "delete", "--grace-period=1", pod)
	s.apply(t, "root-disk.yaml")
	s.says(t, pod, "vm.ambipod.io/replace-root")
	s.kubectl(t, "delete", pod)

	s.apply(t, "replace-root.yaml")
	s.wait(t, "condition=Ready", pod)
	s.inGuest(t, pod, "echo kept >/root/note; sync")
	s.kubectl(t, "delete", pod)
	s.apply(t, "root-disk.yaml")
	s.wait(t, "condition=Ready", pod)
	if got := s.inGuest(t, pod, "cat /root/note"); got != "kept\n" {
		t.Errorf("the next pod reads %q from its root disk", got)
	}
}

// localVolume makes a volume and a storage class for it, which go at the test's
// end: examples/local-volume.yaml, filled in as its comment says.
func (s space) localVolume(t *testing.T, class, mode, path string) {
	t.Helper()
	t.Cleanup(func() {
		atEnd(t, "delete", "persistentvolume/"+class+"-1", "storageclass/"+class, "--wait=false")
	})
	example, err := os.ReadFile(examplePath("local-volume.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.applyText(t, strings.NewReplacer("local-disks", class, "volumeMode: Block", "volumeMode: "+mode,
		"/dev/disk/by-id/DISK", path, "NODE", shared.Node().Name()).Replace(string(example)))
}

// loop attaches a file of a size in bytes that begins with a text as a block device. It
// is detached when the VM that has it is gone.
func loop(t *testing.T, content string, size int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
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
