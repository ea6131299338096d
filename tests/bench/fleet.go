package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
)

const (
	fleetImage  = "vm.ambipod.io/http/127.0.0.1/sector.raw:latest"
	fleetMemory = 64 << 20 // the least that a VM may have
	// fleetWorkers is how many pods are started or removed at once.
	fleetWorkers = 4
	// fleetTime bounds the start or removal of one pod on a busy machine.
	fleetTime = 2 * time.Minute
)

// fleet is the VM pods of a node. Their guests are boot sectors that have halted
// their only CPU with interrupts off, so that they cost memory alone.
type fleet struct {
	node *node.Node
	conn *grpc.ClientConn
	cri  runtimeapi.RuntimeServiceClient

	mu   sync.Mutex // guards pods while they are started
	pods []string   // containers' IDs
}

func newFleet(ctx context.Context, n *node.Node) (*fleet, error) {
	if err := bootsector.WriteDisk(ctx, filepath.Join(n.SiteDir(), "sector.raw")); err != nil {
		return nil, err
	}
	conn, err := node.Dial(n.CRISocket())
	if err != nil {
		return nil, err
	}
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: fleetImage}}
	if _, err := runtimeapi.NewImageServiceClient(conn).PullImage(ctx, request); err != nil {
		return nil, errors.Join(fmt.Errorf("pull the guest image: %w", err), conn.Close())
	}
	return &fleet{node: n, conn: conn, cri: runtimeapi.NewRuntimeServiceClient(conn)}, nil
}

// growTo starts VM pods until there are so many.
func (f *fleet) growTo(ctx context.Context, size int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fleetWorkers)
	for range size - len(f.pods) {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, fleetTime)
			defer cancel()
			return f.add(ctx)
		})
	}
	return group.Wait()
}

// add starts a VM pod and has its guest halt.
func (f *fleet) add(ctx context.Context) error {
	uid := uuid.NewString()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench-" + uid[:8], Namespace: "default", Uid: uid},
		Hostname:     "bench-" + uid[:8],
		LogDirectory: filepath.Join(f.node.PodLogDir(), uid),
		Labels:       map[string]string{"io.kubernetes.pod.uid": uid, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "bench-" + uid[:8]},
		DnsConfig:    &runtimeapi.DNSConfig{},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: f.node.Cgroup()},
	}
	if err := os.MkdirAll(config.GetLogDirectory(), 0o755); err != nil { //nolint:gosec // as kubelet
		return fmt.Errorf("make folder for the VM's log: %w", err)
	}
	box, err := f.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: vmHandler})
	if err != nil {
		return fmt.Errorf("run the VM's sandbox: %w", err)
	}
	created, err := f.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  box.GetPodSandboxId(),
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "vm"},
			Image:    &runtimeapi.ImageSpec{Image: fleetImage},
			LogPath:  "0.log",
			Labels:   config.GetLabels(),
			Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: fleetMemory}},
		},
	})
	if err != nil {
		return fmt.Errorf("create the VM: %w", err)
	}
	id := created.GetContainerId()
	if _, err := f.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("start the VM: %w", err)
	}
	if _, err := node.WaitPodLog(ctx, filepath.Join(config.GetLogDirectory(), "0.log"), bootsector.Ready); err != nil {
		return err
	}
	if err := f.halt(ctx, id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods = append(f.pods, id)
	return nil
}

// halt tells the guest on its serial port to halt.
func (f *fleet) halt(ctx context.Context, id string) error {
	const prefix, short = len("vm."), 16 // of criproxy's IDs; of the folder's name
	socket := filepath.Join(f.node.VMRunDir(), "vms", id[prefix:][:short], "console.sock")
	port, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("reach the guest's serial port: %w", err)
	}
	defer func() { _ = port.Close() }()
	if _, err := port.Write([]byte(bootsector.Halt)); err != nil {
		return fmt.Errorf("halt the guest: %w", err)
	}
	return nil
}

// removeAll removes all VM pods, also those that were not started completely.
func (f *fleet) removeAll(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	boxes, err := f.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	var group errgroup.Group
	group.SetLimit(fleetWorkers)
	for _, box := range boxes.GetItems() {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, fleetTime)
			defer cancel()
			if _, err := f.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box.GetId()}); err != nil {
				return fmt.Errorf("stop a VM's sandbox: %w", err)
			}
			if _, err := f.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box.GetId()}); err != nil {
				return fmt.Errorf("remove a VM's sandbox: %w", err)
			}
			return nil
		})
	}
	return group.Wait()
}
