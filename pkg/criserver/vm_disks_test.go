package criserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// settingsFor parses the annotation as a pod has it.
func settingsFor(t *testing.T, disks string) annotations.Settings {
	t.Helper()
	settings, err := annotations.Parse(map[string]string{annotations.Domain + "disks": disks})
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

// podFolder is a folder of a pod's volume where kubelet has it.
func podFolder(t *testing.T, plugin, volume string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes", plugin, volume)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// flexvolumeFolder is that of a flexvolume with the options, as the driver leaves it.
func flexvolumeFolder(t *testing.T, volume, options string) string {
	t.Helper()
	dir := podFolder(t, "virtlet~flexvolume_driver", volume)
	if err := os.WriteFile(filepath.Join(dir, "options.json"), []byte(options), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDisksOfAPod(t *testing.T) {
	t.Parallel()
	emptyDir, other := podFolder(t, "kubernetes.io~empty-dir", "cache"), podFolder(t, "kubernetes.io~empty-dir", "other")
	found, err := testServer().volumesOf(
		withMounts(
			&runtimeapi.Mount{ContainerPath: "/cache", HostPath: emptyDir},
			&runtimeapi.Mount{ContainerPath: "/cache/again", HostPath: emptyDir, Readonly: true},
			&runtimeapi.Mount{ContainerPath: "/other", HostPath: other},
			&runtimeapi.Mount{ContainerPath: "/old", HostPath: flexvolumeFolder(t, "old", `{"type":"qcow2","capacity":"64MiB"}`)},
		),
		settingsFor(t, `
- {name: scratch, size: 1Gi, fs: ext4, mountPath: /scratch, bus: virtio}
- {name: blank, size: 2Mi, devicePath: /dev/blank, serial: B1, cache: none, io: native, discard: ignore}
- {volume: cache, size: 32Mi}
- {volume: old, devicePath: /dev/old, cache: writethrough}
- {devicePath: /, cache: writeback, serial: system}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(found.shares) != 1 || found.shares[0].mount.GetContainerPath() != "/other" {
		t.Errorf("the emptyDir that is no disk is not shared: %+v", found.shares)
	}
	cacheSerial, oldSerial := diskSerial("volume cache"), diskSerial("volume old")
	link := func(serial, path string) cloudinit.Command {
		return cloudinit.Command{"sh", "-c", linkDisk, "ambipod-disk", serial, path}
	}
	mount := func(serial, path, mode string) cloudinit.Command {
		return cloudinit.Command{"sh", "-c", mountDisk, "ambipod-mount", serial, path, "0", mode}
	}
	want := []cloudinit.Command{
		link(oldSerial, "/dev/old"), link("B1", "/dev/blank"),
		mount(cacheSerial, "/cache", "rw"), mount(cacheSerial, "/cache/again", "ro"), mount(oldSerial, "/old", "rw"),
		{"sh", "-c", mountShare, "ambipod-mount", "volume2", "/other", "virtiofs", "rw"},
		mount("scratch", "/scratch", "rw"),
	}
	if diff := cmp.Diff(want, found.bootCommands()); diff != "" {
		t.Errorf("boot commands (-want +got):\n%s", diff)
	}
	plan := vmPlan{volumes: found, settings: annotations.Settings{DiskBus: "scsi"}}
	plan.image.Path, plan.image.Format = "/images/1", "qcow2"
	dir := "/var/lib/ambipod/vms/" + testID + "/"
	disks := []libvirttools.Disk{
		{Path: dir + "root.qcow2", Format: "qcow2", Bus: "scsi", Serial: "system", Ephemeral: true, Cache: "writeback", Backing: &libvirttools.Disk{Path: "/images/1", Format: "qcow2"}},
		{Path: dir + "config.iso", Format: "raw", CDROM: true, ReadOnly: true, Serial: "config", Bus: "scsi"},
		{Path: filepath.Join(emptyDir, "ambipod-disk.raw"), Handed: cacheSerial, Format: "raw", Bus: "scsi", Serial: cacheSerial},
		{Path: dir + "disk-" + oldSerial + ".qcow2", Format: "qcow2", Bus: "scsi", Serial: oldSerial, Ephemeral: true, Cache: "writethrough"},
		{Path: dir + "disk-scratch.qcow2", Format: "qcow2", Bus: "virtio", Serial: "scratch", Ephemeral: true},
		{Path: dir + "disk-blank.qcow2", Format: "qcow2", Bus: "scsi", Serial: "B1", Ephemeral: true, Cache: "none", IO: "native", Discard: "ignore"},
	}
	if diff := cmp.Diff(disks, testServer().domain(sandbox{}, testVM(), plan).Disks); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
}

func TestDisksThatAVMCannotHave(t *testing.T) {
	t.Parallel()
	emptyDir := &runtimeapi.Mount{ContainerPath: "/cache", HostPath: podFolder(t, "kubernetes.io~empty-dir", "cache")}
	flexible := func(options string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: "/flex", HostPath: flexvolumeFolder(t, "flex", options)}
	}
	var many strings.Builder
	for i := range maxDisks + 1 {
		fmt.Fprintf(&many, "- {name: d%d, size: 1Mi}\n", i)
	}
	for name, test := range map[string]struct {
		mount *runtimeapi.Mount
		disks string
		class func(error) bool
		says  []string
	}{
		"an emptyDir without a size":     {emptyDir, `[{volume: cache}]`, errdefs.IsInvalidArgument, []string{"vm.ambipod.io/disks", "volume cache", "size"}},
		"a volume that is not mounted":   {emptyDir, `[{volume: cash, size: 1Gi}]`, errdefs.IsInvalidArgument, []string{"vm.ambipod.io/disks", "cash"}},
		"a device that is not there":     {emptyDir, `[{devicePath: /dev/data, cache: none}]`, errdefs.IsInvalidArgument, []string{"vm.ambipod.io/disks", "/dev/data"}},
		"a link of a new disk":           {nil, `[{name: a, size: 1Gi, devicePath: /dev/a},{devicePath: /dev/b, cache: none}]`, errdefs.IsInvalidArgument, []string{"/dev/b"}},
		"one serial twice":               {nil, `[{name: a, size: 1Gi},{name: b, size: 1Gi, serial: a}]`, errdefs.IsInvalidArgument, []string{"two disks", "serial a"}},
		"too many disks":                 {nil, many.String(), errdefs.IsInvalidArgument, []string{"25 disks", "24"}},
		"a flexvolume that is resized":   {flexible(`{"type":"qcow2"}`), `[{volume: flex, size: 1Gi}]`, errdefs.IsInvalidArgument, []string{"vm.ambipod.io/disks", "flex"}},
		"a flexvolume of unknown type":   {flexible(`{"type":"nfs"}`), ``, errdefs.IsInvalidArgument, []string{"/flex", "nfs"}},
		"a flexvolume on no Ceph":        {flexible(`{"type":"ceph"}`), ``, errdefs.IsInvalidArgument, []string{"/flex", "flexvolume flex", "monitor"}},
		"a raw flexvolume of no device":  {flexible(`{"type":"raw","path":"/dev/null"}`), ``, errdefs.IsInvalidArgument, []string{"flexvolume flex", "/dev/null"}},
		"a raw flexvolume of none there": {flexible(`{"type":"raw","path":"/dev/none"}`), ``, errdefs.IsNotFound, []string{"flexvolume flex", "/dev/none"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := &runtimeapi.ContainerConfig{}
			if test.mount != nil {
				config.Mounts = append(config.Mounts, test.mount)
			}
			_, err := testServer().volumesOf(config, settingsFor(t, test.disks))
			if !test.class(err) {
				t.Errorf("got %v", err)
			}
			for _, word := range test.says {
				if err != nil && !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not name %s", err, word)
				}
			}
		})
	}
}

// TestDisksOnCeph: libvirt learns where an RBD image is; the key to it goes another way.
func TestDisksOnCeph(t *testing.T) {
	t.Parallel()
	s := diskServer(t)
	files := s.Layout.VM(testID)
	open, closed := `{"type":"ceph","monitor":"mon","pool":"p","volume":"open","part":"0"}`,
		`{"type":"ceph","monitor":"10.0.0.1:3300,mon","pool":"p","volume":"closed","user":"libvirt","secret":"a2V5"}`
	found, err := s.volumesOf(withMounts(
		&runtimeapi.Mount{ContainerPath: "/open", HostPath: flexvolumeFolder(t, "open", open)},
		&runtimeapi.Mount{ContainerPath: "/closed", HostPath: flexvolumeFolder(t, "closed", closed)},
	), settingsFor(t, `[{volume: closed, bus: virtio}]`))
	if err != nil {
		t.Fatal(err)
	}
	openSerial, closedSerial := diskSerial("volume open"), diskSerial("volume closed")
	secret := files.Dir + " " + closedSerial
	want := []libvirttools.Disk{
		{Path: "p/open", Format: "raw", Bus: "scsi", Serial: openSerial, RBD: &libvirttools.RBD{Monitors: []string{"mon:6789"}}},
		{Path: "p/closed", Format: "raw", Bus: "virtio", Serial: closedSerial, RBD: &libvirttools.RBD{
			Monitors: []string{"10.0.0.1:3300", "mon:6789"}, User: "libvirt", Secret: secret,
		}},
	}
	if diff := cmp.Diff(want, found.libvirtDisks(files, "scsi")); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	opened, err := found.openDisks(files)
	if err != nil || len(opened) != 1 || opened[0].Name != secret || string(opened[0].Key) != "key" {
		t.Errorf("libvirt is given %+v, %v; want the key to the second disk", opened, err)
	}
	if err := opened.close(); err != nil {
		t.Error(err)
	}
	for _, command := range []cloudinit.Command{
		{"sh", "-c", mountDisk, "ambipod-mount", openSerial, "/open", "0", "rw"},
		{"sh", "-c", mountDisk, "ambipod-mount", closedSerial, "/closed", "1", "rw"},
	} {
		if !slices.ContainsFunc(found.bootCommands(), func(c cloudinit.Command) bool { return slices.Equal(c, command) }) {
			t.Errorf("the guest does not run %q", command)
		}
	}
}

// diskServer keeps the files of VMs in folders of the test's.
func diskServer(t *testing.T) *Server {
	t.Helper()
	s := testServer()
	s.Layout.State, s.Layout.Run = t.TempDir(), t.TempDir()
	s.QEMUUser = User{os.Getuid(), os.Getgid()}
	if err := os.MkdirAll(s.Layout.VM(testID).Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDisksAreMade(t *testing.T) {
	t.Parallel()
	s, folder := diskServer(t), podFolder(t, "kubernetes.io~empty-dir", "cache")
	found, err := testServer().volumesOf(withMounts(&runtimeapi.Mount{ContainerPath: "/cache", HostPath: folder}),
		settingsFor(t, `[{volume: cache, size: 8Mi},{name: scratch, size: 8Mi, fs: ext4},{name: blank, size: 1Gi}]`))
	if err != nil {
		t.Fatal(err)
	}
	vm := testVM()
	for range 2 { // again, after a crash
		if err := s.makeDisks(t.Context(), vm, found); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	files, err := os.ReadDir(s.Layout.VM(testID).Dir)
	for _, file := range files {
		names = append(names, file.Name())
	}
	if diff := cmp.Diff([]string{"disk-blank.qcow2", "disk-scratch.qcow2"}, names); diff != "" || err != nil {
		t.Errorf("files of the VM, %v (-want +got):\n%s", err, diff)
	}
	opened, err := found.openDisks(s.Layout.VM(testID))
	if err != nil || len(opened) != 1 || opened[0].Name != diskSerial("volume cache") {
		t.Errorf("QEMU is to be handed %v, %v; want the volume's disk", opened, err)
	}
	if err := opened.close(); err != nil {
		t.Error(err)
	}
	disk := filepath.Join(folder, "ambipod-disk.raw")
	if err := os.RemoveAll(s.Layout.VM(testID).Dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(disk); err != nil || info.Size() != 8<<20 {
		t.Errorf("the volume's disk after the VM's end: %v, %v", info, err)
	}
}

// A guest that had the folder itself may have left anything in it.
func TestVolumeDiskIsNoLink(t *testing.T) {
	t.Parallel()
	s, folder := diskServer(t), podFolder(t, "kubernetes.io~empty-dir", "cache")
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(folder, "ambipod-disk.raw")); err != nil {
		t.Fatal(err)
	}
	found, err := testServer().volumesOf(withMounts(&runtimeapi.Mount{ContainerPath: "/cache", HostPath: folder}), settingsFor(t, `[{volume: cache, size: 8Mi}]`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.makeDisks(t.Context(), testVM(), found); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "disk cache") {
		t.Errorf("got %v", err)
	}
	if opened, err := found.openDisks(s.Layout.VM(testID)); !errdefs.IsInvalidArgument(err) || len(opened) > 0 {
		t.Errorf("QEMU was handed %v: %v", opened, err)
	}
}
