package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"libvirt.org/go/libvirtxml" //nolint:depguard // describes a domain to virsh, which Ambipod has no part in

	"github.com/ambipod/ambipod/tests/node"
)

// vmRounds is how often a VM is started on each side: a start takes half a second
// and more, and neighbours on the machine make it vary.
const vmRounds = 12

// vmHandler is the runtime handler of VM pods.
const vmHandler = "vm"

// measureVMs compares the start of a VM pod with virsh's start of its domain.
func measureVMs(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "vms", Base: "virsh create", Ours: "VM pod",
		Title: fmt.Sprintf("Start of a VM whose image is present, medians of %d alternating starts", vmRounds),
	}
	n, err := node.Start(ctx, node.Config{Checkout: e.checkout, Name: "bench-vms", Without: []string{node.Kubelet}})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stopNode(ctx, n)) }()
	conn, err := node.Dial(n.CRISocket())
	if err != nil {
		return s, err
	}
	defer func() { _ = conn.Close() }()
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.VMImage}}
	if _, err := runtimeapi.NewImageServiceClient(conn).PullImage(ctx, request); err != nil {
		return s, fmt.Errorf("pull the guest image: %w", err)
	}
	v := vmBench{node: n, cri: runtimeapi.NewRuntimeServiceClient(conn), logs: filepath.Join(n.Root(), "bench-logs")}
	if err := os.Mkdir(v.logs, 0o700); err != nil {
		return s, fmt.Errorf("make folder for the VMs' logs: %w", err)
	}
	var p pair
	for i := range vmRounds + 1 {
		ours, base, err := v.round(ctx)
		if err != nil {
			return s, err
		}
		if i > 0 { // the first start fills libvirt's and the kernel's caches
			p.base, p.ours = append(p.base, base), append(p.ours, ours)
		}
		_, _ = fmt.Fprintf(e.out, "    start %d of %d done\n", i, vmRounds)
	}
	s.Rows = []row{differenceRow("RunPodSandbox to StartContainer's answer, beside the same domain without its network card", p)}
	return s, nil
}

// differenceRow reports how much longer ours takes, and the spread of the
// difference's middle half.
func differenceRow(what string, p pair) row {
	const (
		lower, upper       = 0.25, 0.75
		atMost       limit = 300
	)
	base, ours := quantileOf(p.base, 0.5), quantileOf(p.ours, 0.5)
	above := milliseconds(ours - base)
	d := p.differences()
	r := row{
		What: what, Base: formatMS(milliseconds(base)), Ours: formatMS(milliseconds(ours)), Samples: len(p.base),
		Ratio:  fmt.Sprintf("%+.0f ms", above),
		Spread: fmt.Sprintf("%+.0f … %+.0f ms", milliseconds(quantileOf(d, lower)), milliseconds(quantileOf(d, upper))),
	}
	return atMost.check(r, above, "+%.0f ms")
}

// vmBench starts VMs on a node.
type vmBench struct {
	node *node.Node
	cri  runtimeapi.RuntimeServiceClient
	logs string
}

// round starts a VM pod, removes it, and has virsh start its domain in between,
// while its disks are there and nobody uses them.
func (v vmBench) round(ctx context.Context) (pod, virsh time.Duration, err error) {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "default", Uid: uuid.NewString()},
		LogDirectory: v.logs,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: v.node.Cgroup()},
	}
	began := time.Now()
	sandbox, err := v.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: vmHandler})
	if err != nil {
		return 0, 0, fmt.Errorf("run the VM's sandbox: %w", err)
	}
	defer func() {
		request := &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}
		if _, failed := v.cri.RemovePodSandbox(context.WithoutCancel(ctx), request); failed != nil {
			err = errors.Join(err, fmt.Errorf("remove the VM's sandbox: %w", failed))
		}
	}()
	container, err := v.start(ctx, sandbox.GetPodSandboxId(), config)
	if err != nil {
		return 0, 0, err
	}
	pod = time.Since(began)
	twin, err := v.describe(ctx)
	if err != nil {
		return 0, 0, err
	}
	if _, err := v.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container}); err != nil {
		return 0, 0, fmt.Errorf("stop the VM: %w", err)
	}
	virsh, err = v.create(ctx, twin)
	return pod, virsh, err
}

// start makes the VM and returns its ID when it runs.
func (v vmBench) start(ctx context.Context, sandbox string, config *runtimeapi.PodSandboxConfig) (string, error) {
	created, err := v.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  sandbox,
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "vm"},
			Image:    &runtimeapi.ImageSpec{Image: node.VMImage},
			LogPath:  "0.log",
		},
	})
	if err != nil {
		return "", fmt.Errorf("create the VM: %w", err)
	}
	id := created.GetContainerId()
	if _, err := v.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return "", fmt.Errorf("start the VM: %w", err)
	}
	return id, nil
}

// describe is the node's only domain as virsh can start it without vmruntime:
// with QEMU itself in vmwrapper's place, so without the card that vmwrapper adds.
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
	domain.QEMUCommandline = nil // what vmwrapper is told
	domain.SysInfo = nil         // has the old UUID in it
	domain.Devices.Emulator = "/usr/bin/qemu-system-x86_64"
	return domain, nil
}

// create has virsh start the domain, and destroys it.
func (v vmBench) create(ctx context.Context, domain *libvirtxml.Domain) (time.Duration, error) {
	text, err := domain.Marshal()
	if err != nil {
		return 0, fmt.Errorf("describe the VM's twin: %w", err)
	}
	file := filepath.Join(v.node.Root(), "twin.xml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return 0, fmt.Errorf("describe the VM's twin: %w", err)
	}
	took, err := timed(func() error {
		_, err := v.virsh(ctx, "create", file)
		return err
	})
	if err != nil {
		return 0, err
	}
	_, err = v.virsh(ctx, "destroy", domain.Name)
	return took, err
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
