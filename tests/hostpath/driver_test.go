package hostpath

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connect(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// started is what Start returns to somebody whose kubelet answers so.
func started(t *testing.T, answer *registerapi.RegistrationStatus) (*Driver, error) {
	t.Helper()
	top, err := os.MkdirTemp("/tmp", "csi") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	said := make(chan error, 1)
	kubelet := registerapi.NewRegistrationClient(connect(t, filepath.Join(top, "d.test-reg.sock")))
	go func() {
		info, err := kubelet.GetInfo(ctx, &registerapi.InfoRequest{})
		if err == nil && (info.GetType() != registerapi.CSIPlugin || info.GetName() != "d.test" || info.GetEndpoint() == "") {
			err = errors.New(info.String())
		}
		if err == nil {
			_, err = kubelet.NotifyRegistrationStatus(ctx, answer)
		}
		said <- err
	}()
	d, err := Start(ctx, Config{Name: "d.test", Node: "here", Dir: filepath.Join(top, "volumes"), Plugins: top})
	if failure := <-said; failure != nil && err == nil {
		t.Errorf("kubelet hears %v", failure)
	}
	return d, err
}

func TestKubeletRefuses(t *testing.T) {
	_, err := started(t, &registerapi.RegistrationStatus{Error: "no"})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Start returns %v", err)
	}
}

func block() []*csi.VolumeCapability {
	return []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}}
}

func files() []*csi.VolumeCapability {
	return []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}}}
}

func at(node string) *csi.TopologyRequirement {
	return &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"d.test/node": node}}}}
}

func TestVolumes(t *testing.T) {
	d, err := started(t, &registerapi.RegistrationStatus{PluginRegistered: true})
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, d.Socket())
	controller, node := csi.NewControllerClient(conn), csi.NewNodeClient(conn)
	for _, c := range []struct {
		what    string
		request *csi.CreateVolumeRequest
		size    int64
		is      func(error) bool
	}{
		{"a device", &csi.CreateVolumeRequest{Name: "disk", VolumeCapabilities: block(), CapacityRange: &csi.CapacityRange{RequiredBytes: 3 << 20}, AccessibilityRequirements: at("here")}, 3 << 20, nil},
		{"the same", &csi.CreateVolumeRequest{Name: "disk", VolumeCapabilities: block(), CapacityRange: &csi.CapacityRange{RequiredBytes: 2 << 20}}, 3 << 20, nil},
		{"it larger", &csi.CreateVolumeRequest{Name: "disk", VolumeCapabilities: block(), CapacityRange: &csi.CapacityRange{RequiredBytes: 4 << 20}}, 0, errdefs.IsAlreadyExists},
		{"it smaller", &csi.CreateVolumeRequest{Name: "disk", VolumeCapabilities: block(), CapacityRange: &csi.CapacityRange{LimitBytes: 2 << 20}}, 0, errdefs.IsAlreadyExists},
		{"it with files", &csi.CreateVolumeRequest{Name: "disk", VolumeCapabilities: files()}, 0, errdefs.IsAlreadyExists},
		{"a folder", &csi.CreateVolumeRequest{Name: "files", VolumeCapabilities: files()}, defaultSize, nil},
		{"the folder again", &csi.CreateVolumeRequest{Name: "files", VolumeCapabilities: files()}, defaultSize, nil},
		{"both", &csi.CreateVolumeRequest{Name: "both", VolumeCapabilities: append(block(), files()...)}, 0, errdefs.IsInvalidArgument},
		{"nothing", &csi.CreateVolumeRequest{Name: "nothing"}, 0, errdefs.IsInvalidArgument},
		{"a copy", &csi.CreateVolumeRequest{Name: "copy", VolumeCapabilities: block(), VolumeContentSource: &csi.VolumeContentSource{}}, 0, errdefs.IsInvalidArgument},
		{"one too small", &csi.CreateVolumeRequest{Name: "x", VolumeCapabilities: block(), CapacityRange: &csi.CapacityRange{RequiredBytes: 2, LimitBytes: 3}}, 0, errdefs.IsOutOfRange},
		{"one elsewhere", &csi.CreateVolumeRequest{Name: "x", VolumeCapabilities: block(), AccessibilityRequirements: at("there")}, 0, errdefs.IsResourceExhausted},
		{"a path", &csi.CreateVolumeRequest{Name: "../x", VolumeCapabilities: block()}, 0, errdefs.IsInvalidArgument},
	} {
		answer, err := controller.CreateVolume(t.Context(), c.request)
		if err = errgrpc.ToNative(err); (c.is == nil) != (err == nil) || c.is != nil && !c.is(err) || answer.GetVolume().GetCapacityBytes() != c.size {
			t.Errorf("%s is made with %d bytes, %v", c.what, answer.GetVolume().GetCapacityBytes(), err)
		}
	}
	if info, err := os.Stat(d.Volume("disk")); err != nil || info.Size() != 3<<20 {
		t.Errorf("the device's file: %v, %v", info, err)
	}
	_, err = node.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: "disk", TargetPath: t.TempDir(), VolumeCapability: files()[0]})
	if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("a device is published as files: %v", err)
	}
	_, err = node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "none", VolumeCapability: block()[0]})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("a volume that does not exist is attached: %v", err)
	}
	for range 2 {
		if _, err := controller.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "disk"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(d.Volume("disk")); !os.IsNotExist(err) {
		t.Errorf("a deleted volume: %v", err)
	}
	if err := d.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}
