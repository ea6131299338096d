package criserver

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
)

// testServer has what describing a VM takes, and nothing that could run one.
func testServer() *Server {
	return &Server{Options: Options{
		Layout: layout.Layout{State: "/var/lib/ambipod", Run: "/run/ambipod"},
		Accel:  "kvm", HideFeatures: []string{"arch-capabilities"},
		Wrapper: "/usr/libexec/vmwrapper", Emulator: "/usr/bin/qemu", Folders: foldersVirtioFS, RawDevices: []string{"null", "none"},
	}}
}

const testID = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0"

func testVM() container {
	return container{
		metadata.Container{ID: testID, DomainUUID: "6f1c2c7e-9d1b-5b7a-8a1e-3d5f0c9b2a41", MemoryBytes: 1 << 30, VCPUs: 1},
		&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "machine"}},
	}
}

func TestDomainHidesCPUFeatures(t *testing.T) {
	t.Parallel()
	got := testServer().domain(sandbox{}, testVM(), vmPlan{})
	if want := []string{"arch-capabilities"}; !slices.Equal(got.DisableFeatures, want) {
		t.Errorf("features %q are hidden, want %q", got.DisableFeatures, want)
	}
}

func TestRootDisks(t *testing.T) {
	t.Parallel()
	dir := "/var/lib/ambipod/vms/" + testID + "/"
	plan := vmPlan{}
	plan.image.Path, plan.image.Format = "/images/1", "raw"
	overlay := testServer().rootDisk(testVM(), plan)
	if want := (libvirttools.Disk{
		Path: dir + "root.qcow2", Format: "qcow2", Serial: "root", Ephemeral: true,
		Backing: &libvirttools.Disk{Path: "/images/1", Format: "raw"},
	}); !cmp.Equal(overlay, want) {
		t.Errorf("overlay (-want +got):\n%s", cmp.Diff(want, overlay))
	}
	plan.cloned = true
	clone := testServer().rootDisk(testVM(), plan)
	if want := (libvirttools.Disk{Path: dir + "root.raw", Format: "raw", Serial: "root", Ephemeral: true}); !cmp.Equal(clone, want) {
		t.Errorf("clone (-want +got):\n%s", cmp.Diff(want, clone))
	}
}
