package criserver

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

func withMounts(mounts ...*runtimeapi.Mount) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Mounts: mounts}
}

func TestVolumesTakeTheirWays(t *testing.T) {
	t.Parallel()
	secret, folder, file := kubeletVolume(t, map[string]string{"token": "secret"}), t.TempDir(), filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := testServer().volumesOf(withMounts(
		&runtimeapi.Mount{ContainerPath: "/b/data", HostPath: folder},
		&runtimeapi.Mount{ContainerPath: terminationLog, HostPath: "/nonexistent"},
		&runtimeapi.Mount{ContainerPath: "/secret", HostPath: secret},
		&runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: file},
		&runtimeapi.Mount{ContainerPath: "/a/data", HostPath: folder, Readonly: true},
		&runtimeapi.Mount{ContainerPath: "/b", HostPath: folder},
	), annotations.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, mount := range found.files {
		files = append(files, mount.GetContainerPath())
	}
	if diff := cmp.Diff([]string{"/secret", "/etc/hosts"}, files); diff != "" {
		t.Errorf("copied (-want +got):\n%s", diff)
	}
	// Folders of one name have different tags, and a volume comes before those in it.
	mount := func(tag, dir, mode string) cloudinit.Command {
		return cloudinit.Command{"sh", "-c", mountShare, "ambipod-mount", tag, dir, "virtiofs", mode}
	}
	want := []cloudinit.Command{mount("volume4", "/a/data", "ro"), mount("volume5", "/b", "rw"), mount("volume0", "/b/data", "rw")}
	if diff := cmp.Diff(want, found.bootCommands()); diff != "" {
		t.Errorf("boot commands (-want +got):\n%s", diff)
	}
	got := testServer().domain(sandbox{}, testVM(), vmPlan{volumes: found})
	run := "/run/ambipod/vms/" + testID[:16] + "/"
	shares := []libvirttools.Share{{Tag: "volume0", Socket: run + "volume0"}, {Tag: "volume4", Socket: run + "volume4"}, {Tag: "volume5", Socket: run + "volume5"}}
	if diff := cmp.Diff(shares, got.Shares); diff != "" {
		t.Errorf("shares (-want +got):\n%s", diff)
	}
}

func TestConfigVolumesAreMountedOnDemand(t *testing.T) {
	t.Parallel()
	secret := kubeletVolume(t, map[string]string{"token": "secret"})
	found, err := testServer().volumesOf(withMounts(&runtimeapi.Mount{ContainerPath: "/secret", HostPath: secret}), annotations.Settings{MountConfig: true})
	if err != nil || len(found.shares) != 1 || len(found.files) != 0 {
		t.Errorf("got %+v, %v; want one folder", found, err)
	}
}

func TestVolumesThatAVMCannotHave(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // after the parallel cases
	many, folder := &runtimeapi.ContainerConfig{}, t.TempDir()
	for i := range maxShares + 1 {
		many.Mounts = append(many.Mounts, &runtimeapi.Mount{ContainerPath: "/v" + strconv.Itoa(i), HostPath: folder})
	}
	for name, test := range map[string]struct {
		config *runtimeapi.ContainerConfig
		class  func(error) bool
		says   []string
	}{
		"an image": {withMounts(&runtimeapi.Mount{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "x"}}), errdefs.IsInvalidArgument, []string{"/model"}},
		"a device": {withMounts(&runtimeapi.Mount{ContainerPath: "/null", HostPath: os.DevNull}), errdefs.IsInvalidArgument, []string{"/null"}},
		"a socket": {withMounts(&runtimeapi.Mount{ContainerPath: "/sock", HostPath: socket}), errdefs.IsInvalidArgument, []string{"/sock", socket}},
		"nothing":  {withMounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/nonexistent"}), errdefs.IsNotFound, []string{"/x"}},
		"mounts of its own": {
			withMounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: folder, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}),
			errdefs.IsInvalidArgument,
			[]string{"/x", "HostToContainer"},
		},
		"too many folders": {many, errdefs.IsInvalidArgument, []string{"33 folders", "32"}},
		"too many disks":   {&runtimeapi.ContainerConfig{Devices: make([]*runtimeapi.Device, 26)}, errdefs.IsInvalidArgument, []string{"26 block devices", "25"}},
		"a character device": {
			&runtimeapi.ContainerConfig{Devices: []*runtimeapi.Device{{ContainerPath: "/dev/fuse", HostPath: os.DevNull}}},
			errdefs.IsInvalidArgument,
			[]string{"/dev/fuse", "no block device"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := testServer().volumesOf(test.config, annotations.Settings{})
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

// Both buses have room for the root, the cloud-init disk and all that a pod may bring.
func TestAllDisksFit(t *testing.T) {
	t.Parallel()
	for _, bus := range []string{libvirttools.BusSCSI, libvirttools.BusVirtio} {
		plan := vmPlan{}
		plan.settings.DiskBus = bus
		plan.image.Path, plan.image.Format = "/images/1", "qcow2"
		serials := map[string]bool{}
		for i := range maxDisks {
			path := "/dev/data" + strconv.Itoa(i)
			serials[diskSerial(path)] = true
			plan.volumes.disks = append(plan.volumes.disks, guestDisk{node: "/dev/loop" + strconv.Itoa(i), path: path, serial: diskSerial(path)})
		}
		domain := testServer().domain(sandbox{Sandbox: metadata.Sandbox{ID: testID}}, testVM(), plan)
		if _, err := libvirttools.BuildXML(domain); err != nil {
			t.Errorf("bus %s: %v", bus, err)
		}
		const shownByVirtioBlk = 20
		for serial := range serials {
			if len(serial) > shownByVirtioBlk {
				t.Errorf("serial %s is longer than the guest sees", serial)
			}
		}
		if len(serials) != maxDisks {
			t.Errorf("%d disks have %d serials", maxDisks, len(serials))
		}
	}
}

func TestFoldersBy9P(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	config := withMounts(&runtimeapi.Mount{ContainerPath: "/data", HostPath: folder + "/", Readonly: true})
	for name, row := range map[string]struct{ node, wish, want string }{
		"a node without virtiofsd":    {folders9P, "", folders9P},
		"a pod that wants 9p":         {foldersVirtioFS, folders9P, folders9P},
		"a pod that wants virtiofsd":  {folders9P, foldersVirtioFS, foldersVirtioFS},
		"a pod that wants nothing":    {foldersVirtioFS, "", foldersVirtioFS},
		"a pod that wants what it is": {foldersVirtioFS, foldersVirtioFS, foldersVirtioFS},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testServer()
			s.Folders, s.QEMUUser = row.node, User{os.Getuid(), os.Getgid()}
			found, err := s.volumesOf(config, annotations.Settings{Folders: row.wish})
			if err != nil || found.folders != row.want {
				t.Fatalf("folders come by %s, %v; want %s", found.folders, err, row.want)
			}
			share := s.domain(sandbox{}, testVM(), vmPlan{volumes: found}).Shares[0]
			served := found.served()
			if by9P := row.want == folders9P; by9P != (share.Folder == folder) || by9P != (share.Socket == "") || by9P != share.ReadOnly || by9P != (len(served) == 0) {
				t.Errorf("share %+v with the servers %v", share, served)
			}
			options := []string{"9p", "ro,trans=virtio,version=9p2000.L"}
			if row.want != folders9P {
				options = []string{"virtiofs", "ro"}
			}
			command := found.bootCommands()[0]
			if diff := cmp.Diff(options, []string(command[len(command)-2:])); diff != "" {
				t.Errorf("the guest mounts (-want +got):\n%s", diff)
			}
			if row.want == folders9P {
				return // whether QEMU's user can use the folder takes root to ask
			}
			if err := s.checkFolders(t.Context(), found); (row.node == folders9P) != errdefs.IsFailedPrecondition(err) {
				t.Errorf("the node's folders: %v", err)
			}
		})
	}
}
