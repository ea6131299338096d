package vmctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// questions is how many VMs are asked about at a time.
const questions = 8

// Words for what a VM is doing, besides libvirt's phases of a running one.
const (
	stateNone    = "no VM"   // the sandbox has none yet, or any more
	stateCreated = "created" // but never started
	stateExited  = "exited"
	stateUnknown = "unknown"
)

// VM is a pod's newest VM.
type VM struct {
	Namespace   string     `json:"namespace"`
	Pod         string     `json:"pod"`
	UID         string     `json:"uid"`
	Container   string     `json:"container"`   // name in the pod's spec
	SandboxID   string     `json:"sandboxID"`   // as the CRI server tells it
	ContainerID string     `json:"containerID"` // likewise; empty if there is no VM
	DomainUUID  string     `json:"domainUUID"`
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"` // of an unusual state
	ExitCode    *int32     `json:"exitCode,omitempty"`
	IPs         []string   `json:"ips"`
	CPUs        int        `json:"cpus"`
	MemoryBytes int64      `json:"memoryBytes"`
	Image       string     `json:"image"`
	ImageID     string     `json:"imageID"`
	CreatedAt   time.Time  `json:"createdAt"` // of the pod's sandbox
	StartedAt   *time.Time `json:"startedAt,omitempty"`
	Restarts    uint32     `json:"restarts"` // by kubelet
	Reboots     int        `json:"reboots"`  // by the guest itself, of this VM
	Problem     string     `json:"problem,omitempty"`
}

// Name is how people call the VM.
func (v VM) Name() string { return v.Namespace + "/" + v.Pod }

// ShortID tells VMs of a node apart, in lists.
func (v VM) ShortID() string {
	const digits = 12
	id := strings.TrimPrefix(cmp.Or(v.ContainerID, v.SandboxID), proxyPrefix)
	return id[:min(len(id), digits)]
}

// Running says that the VM can be got into.
func (v VM) Running() bool {
	return v.ContainerID != "" && v.StartedAt != nil && v.State != stateExited
}

// List returns the VM pods of the node, sorted by name. A VM that cannot be asked
// about is in it with its Problem.
func (n *Node) List(ctx context.Context) ([]VM, error) {
	boxes, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list pods at %s: %w", n.Socket, Native(err))
	}
	containers, err := n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list VMs at %s: %w", n.Socket, Native(err))
	}
	newest := map[string]*runtimeapi.Container{}
	for _, c := range containers.GetContainers() {
		if old := newest[c.GetPodSandboxId()]; old == nil || old.GetCreatedAt() < c.GetCreatedAt() {
			newest[c.GetPodSandboxId()] = c
		}
	}
	var vms []VM
	for _, box := range boxes.GetItems() {
		if n.isVM(box.GetId()) {
			vms = append(vms, newVM(box, newest[box.GetId()]))
		}
	}
	var asking errgroup.Group
	asking.SetLimit(questions)
	for i := range vms {
		asking.Go(func() error {
			if err := n.complete(ctx, &vms[i]); err != nil {
				vms[i].State, vms[i].Problem = stateUnknown, err.Error()
			}
			return nil
		})
	}
	_ = asking.Wait() // none fails
	slices.SortFunc(vms, func(a, b VM) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.SandboxID, b.SandboxID))
	})
	return vms, ctx.Err()
}

func newVM(box *runtimeapi.PodSandbox, c *runtimeapi.Container) VM {
	vm := VM{
		Namespace: box.GetMetadata().GetNamespace(), Pod: box.GetMetadata().GetName(), UID: box.GetMetadata().GetUid(),
		SandboxID: box.GetId(), State: stateNone, IPs: []string{}, CreatedAt: time.Unix(0, box.GetCreatedAt()).UTC(),
	}
	if c != nil {
		vm.Container, vm.ContainerID, vm.ImageID = c.GetMetadata().GetName(), c.GetId(), c.GetImageRef()
		vm.Restarts = c.GetMetadata().GetAttempt()
	}
	return vm
}

// containerInfo is what vmruntime's verbose status of a container has in it.
type containerInfo struct {
	DomainUUID  string             `json:"domainUUID"`
	VCPUs       int                `json:"vcpus"`
	MemoryBytes int64              `json:"memoryBytes"`
	Reboots     int                `json:"reboots"`
	Cgroup      string             `json:"cgroup"`
	Domain      libvirttools.State `json:"-"`
}

func readContainerInfo(info map[string]string) containerInfo {
	var read containerInfo
	for name, into := range map[string]any{
		"domainUUID": &read.DomainUUID, "vcpus": &read.VCPUs, "memoryBytes": &read.MemoryBytes, "reboots": &read.Reboots,
		"cgroup": &read.Cgroup, "domain": &read.Domain,
	} {
		// What another version does not tell, or tells otherwise, stays empty.
		_ = json.Unmarshal([]byte(info[name]), into)
	}
	return read
}

// complete asks for what lists do not have.
func (n *Node) complete(ctx context.Context, vm *VM) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	box, err := n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: vm.SandboxID})
	if err != nil {
		return fmt.Errorf("status of pod %s: %w", vm.Name(), Native(err))
	}
	if ip := box.GetStatus().GetNetwork().GetIp(); ip != "" {
		vm.IPs = append(vm.IPs, ip)
	}
	for _, more := range box.GetStatus().GetNetwork().GetAdditionalIps() {
		vm.IPs = append(vm.IPs, more.GetIp())
	}
	if vm.ContainerID == "" {
		return nil
	}
	answer, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: vm.ContainerID, Verbose: true})
	if err != nil {
		return fmt.Errorf("status of VM %s: %w", vm.Name(), Native(err))
	}
	vm.describe(answer.GetStatus(), readContainerInfo(answer.GetInfo()))
	return nil
}

func (v *VM) describe(status *runtimeapi.ContainerStatus, info containerInfo) {
	v.DomainUUID, v.CPUs, v.MemoryBytes, v.Reboots = info.DomainUUID, info.VCPUs, info.MemoryBytes, info.Reboots
	v.Image = status.GetImage().GetImage()
	if status.GetStartedAt() > 0 {
		at := time.Unix(0, status.GetStartedAt()).UTC()
		v.StartedAt = &at
	}
	switch status.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		v.State = stateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		v.State = cmp.Or(string(info.Domain.Phase), stateUnknown)
		if info.Domain.Phase != libvirttools.PhaseRunning {
			v.Reason = string(info.Domain.Reason)
		}
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		code := status.GetExitCode()
		v.State, v.ExitCode = stateExited, &code
		v.Reason = status.GetReason()
		v.Problem = status.GetMessage()
	default:
		v.State = stateUnknown
	}
}
