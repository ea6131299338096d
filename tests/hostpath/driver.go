// Package hostpath is a CSI driver with volumes in a folder of its node: a file for
// each raw block device, a folder for each file system. It is what tests have for the
// storage of real clusters; kubelet and csi-provisioner are told no less than by any
// other driver.
//
// Nouns. A volume is an entry of the driver's folder, named by the volume's ID. It is
// attached while the kernel has a loop device for its file, and published where it is
// mounted for a pod. None of this is remembered elsewhere: file system and kernel are
// asked each time.
//
// A Driver is a server in the process that starts it. Its calls are made one after
// another. What it mounts must be below a folder which kubelet shares with this
// process's mount namespace.
package hostpath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// version is the driver's own, which CSI wants to know.
const version = "1"

// Config says for whom a driver works. Paths of sockets have 107 characters at most.
type Config struct {
	// Name is the driver's, a domain name. The label Name/node of a node says where
	// a volume is.
	Name string
	// Node is the name of the node.
	Node string
	// Dir is the folder of the volumes, which Close removes.
	Dir string
	// Plugins is where kubelet looks for drivers: plugins_registry in its root folder.
	Plugins string
}

// Driver is a running driver; see the package comment.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	cfg Config

	calls      sync.Mutex // guards Dir and what is mounted
	registered chan error // kubelet's answer
	servers    []*grpc.Server
	serving    errgroup.Group
}

// Start serves kubelet and returns when kubelet has accepted the driver. Errors:
// errdefs.ErrFailedPrecondition if it refuses; those of the context and of sockets.
func Start(ctx context.Context, cfg Config) (*Driver, error) {
	d := &Driver{cfg: cfg, registered: make(chan error, 1)}
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start CSI driver %s: %w", cfg.Name, err), d.Close(context.WithoutCancel(ctx)))
	}
	return d, nil
}

func (d *Driver) start(ctx context.Context) error {
	if err := os.MkdirAll(d.cfg.Dir, 0o700); err != nil {
		return err
	}
	err := d.serve(ctx, d.Socket(), func(s *grpc.Server) {
		csi.RegisterIdentityServer(s, d)
		csi.RegisterControllerServer(s, d)
		csi.RegisterNodeServer(s, d)
	})
	if err != nil {
		return err
	}
	err = d.serve(ctx, filepath.Join(d.cfg.Plugins, d.cfg.Name+"-reg.sock"), func(s *grpc.Server) {
		registerapi.RegisterRegistrationServer(s, &registrar{driver: d})
	})
	if err != nil {
		return err
	}
	select {
	case err := <-d.registered:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for kubelet: %w", context.Cause(ctx))
	}
}

func (d *Driver) serve(ctx context.Context, socket string, register func(*grpc.Server)) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(d.oneByOne))
	register(server)
	d.servers = append(d.servers, server)
	d.serving.Go(func() error {
		err := server.Serve(listener)
		if errors.Is(err, grpc.ErrServerStopped) { // before it began
			return nil
		}
		return err
	})
	return nil
}

// oneByOne makes errors gRPC's.
func (d *Driver) oneByOne(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	d.calls.Lock()
	defer d.calls.Unlock()
	answer, err := handle(ctx, request)
	return answer, errgrpc.ToGRPC(err)
}

// Close ends the driver and removes its volumes. A volume that is still attached is
// detached, and that is errdefs.ErrFailedPrecondition.
func (d *Driver) Close(ctx context.Context) error {
	for _, server := range d.servers {
		server.Stop()
	}
	errs := []error{d.serving.Wait()}
	attached, err := d.Attached(ctx)
	for _, device := range attached {
		left := fmt.Errorf("%s was left attached: %w", device, errdefs.ErrFailedPrecondition)
		errs = append(errs, left, detach(ctx, device))
	}
	if err := errors.Join(append(errs, err, os.RemoveAll(d.cfg.Dir))...); err != nil {
		return fmt.Errorf("end CSI driver %s: %w", d.cfg.Name, err)
	}
	return nil
}

// Socket is where the driver serves CSI. Volumes have no names with a dot in front.
func (d *Driver) Socket() string { return filepath.Join(d.cfg.Dir, ".csi.sock") }

// Volume is the path of a volume, which somebody may have made beforehand: a file of
// the device's size, or a folder.
func (d *Driver) Volume(id string) string { return filepath.Join(d.cfg.Dir, id) }

// Attached lists the loop devices of volumes.
func (d *Driver) Attached(ctx context.Context) ([]string, error) {
	entries, err := os.ReadDir(d.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var all []string
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		devices, err := devicesOf(ctx, d.Volume(entry.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, devices...)
	}
	return all, nil
}

// GetPluginInfo is CSI's.
func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.cfg.Name, VendorVersion: version}, nil
}

// GetPluginCapabilities is CSI's: the driver makes volumes, each on its own node.
func (*Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	answer := &csi.GetPluginCapabilitiesResponse{}
	for _, service := range []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: service}},
		})
	}
	return answer, nil
}

// Probe is CSI's.
func (*Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// registrar tells kubelet of the driver and learns what kubelet thinks of it.
type registrar struct {
	registerapi.UnimplementedRegistrationServer
	driver *Driver
}

func (r *registrar) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: r.driver.cfg.Name, Endpoint: r.driver.Socket(), SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	var err error
	if !status.GetPluginRegistered() {
		err = fmt.Errorf("kubelet refuses the driver: %s: %w", status.GetError(), errdefs.ErrFailedPrecondition)
	}
	select {
	case r.driver.registered <- err:
	default: // a kubelet that was started again, and nobody waits
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
