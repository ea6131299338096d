//go:build faults

package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

const (
	// callTime is kubelet's patience with one call, shortened: nothing here takes
	// nearly as long.
	callTime = 20 * time.Second
	// syncInterval is how soon kubelet looks again after an error.
	syncInterval = 200 * time.Millisecond

	guestMemory = 64 << 20
	vmHandler   = "vm"
	uidLabel    = "pod-uid"
)

// cri is a connection to a CRI server.
type cri struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
}

// kind is a sort of pod.
type kind struct {
	name, handler, image string
	command              []string
}

var (
	containerKind = kind{name: "container", image: node.ContainerImage, command: []string{"sleep", "1000000"}}
	sectorKind    = kind{name: "vm", handler: vmHandler, image: sectorImage}
)

// pod is what kubelet knows of a pod: its spec. All else it asks the runtime for.
type pod struct {
	cri
	kind
	uid    string
	logs   string
	cgroup string
	memory int64

	annotations map[string]string
	mounts      []*runtimeapi.Mount
}

func (r *rig) pod(k kind) *pod {
	p := &pod{cri: r.cri, kind: k, uid: uuid.NewString(), cgroup: r.n.Cgroup(), memory: guestMemory}
	p.logs = filepath.Join(r.n.PodLogDir(), p.uid)
	return p
}

func (p *pod) sandboxConfig(attempt uint32) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + p.uid[:8], Namespace: "faults", Uid: p.uid, Attempt: attempt},
		Hostname:     "pod-" + p.uid[:8],
		LogDirectory: p.logs,
		Labels:       map[string]string{uidLabel: p.uid},
		Annotations:  p.annotations,
		DnsConfig:    &runtimeapi.DNSConfig{},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: p.cgroup},
	}
}

func (p *pod) containerConfig(attempt uint32) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: attempt},
		Image:    &runtimeapi.ImageSpec{Image: p.image},
		Command:  p.command,
		LogPath:  fmt.Sprintf("main-%d.log", attempt),
		Mounts:   p.mounts,
		Labels:   map[string]string{uidLabel: p.uid},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: p.memory, CpuPeriod: 100_000, CpuQuota: 100_000,
		}},
	}
}

func (p *pod) logPath(attempt uint32) string {
	return filepath.Join(p.logs, p.containerConfig(attempt).GetLogPath())
}

// sandboxes of the pod, newest first, as kubelet sorts them.
func (p *pod) sandboxes(ctx context.Context) ([]*runtimeapi.PodSandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := p.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{uidLabel: p.uid},
	}})
	boxes := answer.GetItems()
	slices.SortFunc(boxes, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	return boxes, err
}

// containers of the pod, newest first.
func (p *pod) containers(ctx context.Context) ([]*runtimeapi.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := p.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{uidLabel: p.uid},
	}})
	list := answer.GetContainers()
	slices.SortFunc(list, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.GetCreatedAt(), a.GetCreatedAt()) })
	return list, err
}

// sync does what kubelet does about a pod that should run and is not seen running.
func (p *pod) sync(ctx context.Context) error {
	if err := os.MkdirAll(p.logs, 0o755); err != nil {
		return err
	}
	box, config, err := p.syncSandbox(ctx)
	if err != nil {
		return err
	}
	list, err := p.containers(ctx)
	if err != nil {
		return err
	}
	var attempt uint32
	if len(list) > 0 {
		if list[0].GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING && list[0].GetPodSandboxId() == box {
			return nil
		}
		attempt = list[0].GetMetadata().GetAttempt() + 1
	}
	id, err := p.create(ctx, box, config, attempt)
	if err != nil {
		return err
	}
	if err := p.start(ctx, id); err != nil {
		return err
	}
	return errNotSeenYet
}

// errNotSeenYet makes kubelet look again: it believes its lists alone.
var errNotSeenYet = errors.New("the container was started and has not been seen running")

// syncSandbox returns the pod's ready sandbox, which it makes if there is none.
func (p *pod) syncSandbox(ctx context.Context) (string, *runtimeapi.PodSandboxConfig, error) {
	boxes, err := p.sandboxes(ctx)
	if err != nil {
		return "", nil, err
	}
	var attempt uint32
	if len(boxes) > 0 {
		attempt = boxes[0].GetMetadata().GetAttempt()
		if boxes[0].GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			return boxes[0].GetId(), p.sandboxConfig(attempt), nil
		}
		attempt++
	}
	for _, box := range boxes {
		if err := p.stopSandbox(ctx, box.GetId()); err != nil {
			return "", nil, err
		}
	}
	id, err := p.runSandbox(ctx, attempt)
	return id, p.sandboxConfig(attempt), err
}

func (p *pod) runSandbox(ctx context.Context, attempt uint32) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := p.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.sandboxConfig(attempt), RuntimeHandler: p.handler})
	return answer.GetPodSandboxId(), err
}

func (p *pod) create(ctx context.Context, box string, config *runtimeapi.PodSandboxConfig, attempt uint32) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := p.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: box, Config: p.containerConfig(attempt), SandboxConfig: config,
	})
	return answer.GetContainerId(), err
}

func (p *pod) start(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := p.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (p *pod) stop(ctx context.Context, id string, grace int64) error {
	ctx, cancel := context.WithTimeout(ctx, callTime+time.Duration(grace)*time.Second)
	defer cancel()
	_, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
	return err
}

func (p *pod) removeContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := p.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (p *pod) stopSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := p.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (p *pod) removeSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := p.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// end does what kubelet does about a pod that should be gone.
func (p *pod) end(ctx context.Context) error {
	list, err := p.containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := p.stop(ctx, c.GetId(), 0); err != nil {
			return err
		}
		if err := p.removeContainer(ctx, c.GetId()); err != nil {
			return err
		}
	}
	boxes, err := p.sandboxes(ctx)
	if err != nil {
		return err
	}
	for _, box := range boxes {
		if err := p.stopSandbox(ctx, box.GetId()); err != nil {
			return err
		}
		if err := p.removeSandbox(ctx, box.GetId()); err != nil {
			return err
		}
	}
	if list, err = p.containers(ctx); err != nil {
		return err
	}
	if boxes, err = p.sandboxes(ctx); err != nil {
		return err
	}
	if len(list)+len(boxes) > 0 {
		return fmt.Errorf("%d containers and %d sandboxes are still listed", len(list), len(boxes))
	}
	return os.RemoveAll(p.logs)
}

// repeat is kubelet's loop around sync and end.
func repeat(ctx context.Context, what string, step func(context.Context) error) error {
	again := time.NewTicker(syncInterval)
	defer again.Stop()
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		// Refusals that no repetition overcomes.
		if code := status.Code(err); code == codes.InvalidArgument || code == codes.Unimplemented {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%s has not converged: %w", what, err)
		}
	}
}

// run makes the pod run and returns its container.
func (p *pod) run(ctx context.Context) (*runtimeapi.Container, error) {
	var newest *runtimeapi.Container
	err := repeat(ctx, "pod that should run", func(ctx context.Context) error {
		if err := p.sync(ctx); err != nil {
			return err
		}
		list, err := p.containers(ctx)
		if err == nil && len(list) == 0 {
			err = errors.New("its container is not listed")
		}
		if err != nil {
			return err
		}
		newest = list[0]
		return nil
	})
	return newest, err
}

// remove makes the pod go.
func (p *pod) remove(ctx context.Context) error {
	return repeat(ctx, "pod that should go", p.end)
}

// status of a container.
func (p *pod) status(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	answer, err := p.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return answer.GetStatus(), err
}

// waitExited returns the status when the container has ended.
func (p *pod) waitExited(ctx context.Context, id string) (status *runtimeapi.ContainerStatus, err error) {
	err = node.Until(ctx, "the container has exited", func(ctx context.Context) error {
		if status, err = p.status(ctx, id); err != nil {
			return err
		}
		if status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s", status.GetState())
		}
		return nil
	})
	return status, err
}

// vmID is vmruntime's own ID of what criproxy shows with a prefix.
func vmID(id string) string { return strings.TrimPrefix(id, "vm.") }

// qemus are the QEMU processes of a VM: one, or none.
func (r *rig) qemus(id string) ([]process.Process, error) {
	return r.n.ProcessesNaming("guest=ambipod-" + vmID(id)[:12])
}
