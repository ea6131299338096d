package criserver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
)

// hostRoot is the root directory of a node that is mounted somewhere: with a folder,
// a link to it as the node has it, and one that climbs.
func hostRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "srv", "data"), 0o700),
		os.Symlink("/srv/data", filepath.Join(root, "absolute")),
		os.Symlink("../../../../../srv/data", filepath.Join(root, "srv", "climbing")),
		os.WriteFile(filepath.Join(root, "file"), []byte("of the node"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostRoot(t *testing.T) {
	t.Parallel()
	root := hostRoot(t)
	s := testServer()
	s.HostRoot = root
	config := withMounts(
		&runtimeapi.Mount{ContainerPath: "/plain", HostPath: "/srv/data", Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		&runtimeapi.Mount{ContainerPath: "/absolute", HostPath: "/absolute"},
		&runtimeapi.Mount{ContainerPath: "/climbing", HostPath: "/srv/climbing"},
		&runtimeapi.Mount{ContainerPath: "/etc/file", HostPath: "/srv/../file"},
	)
	found, err := s.volumesOf(config, annotations.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(root, "srv", "data")
	for _, share := range found.shares {
		if share.mount.GetHostPath() != data {
			t.Errorf("%s is served from %s, not from %s", share.mount.GetContainerPath(), share.mount.GetHostPath(), data)
		}
	}
	if first := found.shares[0].mount; len(found.shares) != 3 || !first.GetReadonly() || first.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER {
		t.Errorf("shares are %v", found.shares)
	}
	files, err := guestFiles(found.files)
	if err != nil || len(files) != 1 || string(files[0].Content) != "of the node" {
		t.Errorf("files are %v, %v", files, err)
	}
	if diff := cmp.Diff("/srv/data", config.GetMounts()[0].GetHostPath()); diff != "" {
		t.Errorf("what kubelet said was changed: %s", diff)
	}
	// The sources of annotations are mounts, too.
	if len(found.mounts) != 4 || found.mounts[3].GetHostPath() != filepath.Join(root, "file") {
		t.Errorf("mounts are %v", found.mounts)
	}
	// What only this process has is nothing of the node's.
	if _, err := s.volumesOf(withMounts(&runtimeapi.Mount{ContainerPath: "/x", HostPath: root}), annotations.Settings{}); err == nil {
		t.Error("a folder was found beside the node's root directory")
	}
	device := &runtimeapi.ContainerConfig{Devices: []*runtimeapi.Device{{ContainerPath: "/dev/x", HostPath: "/file", Permissions: "mrw"}}}
	here, err := asSeenHere(root, device)
	if err != nil || here.GetDevices()[0].GetHostPath() != filepath.Join(root, "file") || here.GetDevices()[0].GetPermissions() != "mrw" {
		t.Errorf("devices are %v, %v", here, err)
	}
}
