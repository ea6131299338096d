package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"libvirt.org/go/libvirtxml" //nolint:depguard // describes a domain to virsh, which Ambipod has no part in

	"github.com/ambipod/ambipod/tests/node"
)

// vmBench starts VMs on a node of its own.
type vmBench struct {
	node *node.Node
	conn *grpc.ClientConn
	cri  runtimeapi.RuntimeServiceClient
	logs string
}

// startVMBench starts a node without kubelet, which has the guest image already.
func startVMBench(ctx context.Context, e environment, name string) (_ vmBench, err error) {
	var v vmBench
	if v.node, err = node.Start(ctx, node.Config{Checkout: e.checkout, Name: name, Without: []string{node.Kubelet}}); err != nil {
		return v, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.stop(ctx))
		}
	}()
	if v.conn, err = node.Dial(v.node.CRISocket()); err != nil {
		return v, err
	}
	v.cri = runtimeapi.NewRuntimeServiceClient(v.conn)
	if err := v.pull(ctx, node.VMImage); err != nil {
		return v, err
	}
	v.logs = filepath.Join(v.node.Root(), "bench-logs")
	if err := os.Mkdir(v.logs, 0o700); err != nil {
		return v, fmt.Errorf("make folder for the VMs' logs: %w", err)
	}
	return v, nil
}

func (v vmBench) stop(ctx context.Context) error {
	var err error
	if v.conn != nil {
		err = v.conn.Close()
	}
	return errors.Join(err, stopNode(ctx, v.node))
}

func (v vmBench) pull(ctx context.Context, image string) error {
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}
	if _, err := runtimeapi.NewImageServiceClient(v.conn).PullImage(ctx, request); err != nil {
		return fmt.Errorf("pull guest image %s: %w", image, err)
	}
	return nil
}

// vmSpec is what makes a VM pod differ from the plainest one.
type vmSpec struct {
	image       string // default: the tiny guest
	memory      int64  // bytes; default: vmruntime's
	annotations map[string]string
	mounts      []*runtimeapi.Mount
}

// vmPod is a VM pod by its IDs.
type vmPod struct{ sandbox, container string }

// create makes a VM pod that is not started yet; nothing is left of it after a failure.
func (v vmBench) create(ctx context.Context, spec vmSpec) (vm vmPod, err error) {
	if spec.image == "" {
		spec.image = node.VMImage
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "default", Uid: uuid.NewString()},
		LogDirectory: v.logs,
		Annotations:  spec.annotations,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: v.node.Cgroup()},
	}
	sandbox, err := v.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: vmHandler})
	if err != nil {
		return vm, fmt.Errorf("run the VM's sandbox: %w", err)
	}
	vm.sandbox = sandbox.GetPodSandboxId()
	created, err := v.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  vm.sandbox,
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "vm"},
			Image:    &runtimeapi.ImageSpec{Image: spec.image},
			LogPath:  config.GetMetadata().GetUid() + ".log",
			Mounts:   spec.mounts,
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: spec.memory},
			},
		},
	})
	if err != nil {
		return vm, errors.Join(fmt.Errorf("create the VM: %w", err), v.remove(ctx, vm))
	}
	vm.container = created.GetContainerId()
	return vm, nil
}

func (v vmBench) start(ctx context.Context, vm vmPod) error {
	if _, err := v.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: vm.container}); err != nil {
		return fmt.Errorf("start the VM: %w", err)
	}
	return nil
}

func (v vmBench) remove(ctx context.Context, vm vmPod) error {
	request := &runtimeapi.RemovePodSandboxRequest{PodSandboxId: vm.sandbox}
	if _, err := v.cri.RemovePodSandbox(context.WithoutCancel(ctx), request); err != nil {
		return fmt.Errorf("remove the VM's sandbox: %w", err)
	}
	return nil
}

// twinMAC is the network card's of twins.
const twinMAC = "52:54:00:77:00:01"

// describe is the node's only domain as libvirt can start it without vmruntime:
// QEMU itself is in vmwrapper's place, the network card's tap is libvirt's own on
// the same bridge, and servers that vmruntime starts are libvirt's business.
func (v vmBench) describe(ctx context.Context) (*libvirtxml.Domain, error) {
	name, err := v.virsh(ctx, "list", "--name")
	if err != nil {
		return nil, err
	}
	text, err := v.virsh(ctx, "dumpxml", "--inactive", strings.TrimSpace(name))
	if err != nil {
		return nil, err
	}
	domain := new(libvirtxml.Domain)
	if err := domain.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read the VM's domain: %w", err)
	}
	domain.Name, domain.UUID, domain.ID = "twin", uuid.NewString(), nil
	domain.QEMUCommandline = nil                // what vmwrapper is told
	domain.SysInfo, domain.OS.SMBios = nil, nil // have the old UUID in them
	domain.Devices.Emulator = "/usr/bin/qemu-system-x86_64"
	domain.Devices.Interfaces = []libvirtxml.DomainInterface{{
		MAC:    &libvirtxml.DomainInterfaceMAC{Address: twinMAC},
		Source: &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: v.node.Bridge()}},
		Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		ROM:    &libvirtxml.DomainROM{Enabled: "no"},
	}}
	for i := range domain.Devices.TPMs {
		domain.Devices.TPMs[i].Backend = &libvirtxml.DomainTPMBackend{Emulator: &libvirtxml.DomainTPMBackendEmulator{Version: "2.0"}}
	}
	for i := range domain.Devices.Filesystems {
		share := filepath.Join(v.node.Root(), "bench-share")
		domain.Devices.Filesystems[i].Source = &libvirtxml.DomainFilesystemSource{Mount: &libvirtxml.DomainFilesystemSourceMount{Dir: share}}
	}
	return domain, nil
}

// createDomain has virsh start the domain.
func (v vmBench) createDomain(ctx context.Context, domain *libvirtxml.Domain) error {
	text, err := domain.Marshal()
	if err != nil {
		return fmt.Errorf("describe the VM's twin: %w", err)
	}
	file := filepath.Join(v.node.Root(), "twin.xml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("describe the VM's twin: %w", err)
	}
	_, err = v.virsh(ctx, "create", file)
	return err
}

func (v vmBench) virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", v.node.LibvirtURI()}, args...)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run virsh %s: %w: %s", args[0], err, strings.TrimSpace(complaint.String()))
	}
	return string(out), nil
}
