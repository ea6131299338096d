package vmctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/redact"
)

// Inspection is all that is known of a VM, without secrets.
type Inspection struct {
	VM        VM              `json:"vm"`
	Sandbox   json.RawMessage `json:"sandbox"`             // PodSandboxStatus, verbose: network, configuration
	Container json.RawMessage `json:"container,omitempty"` // ContainerStatus, verbose: files, control group, configuration
	Stats     json.RawMessage `json:"stats,omitempty"`     // ContainerStats of a running VM
	Disks     []Disk          `json:"disks,omitempty"`     // of a running VM
	DomainXML string          `json:"domainXML,omitempty"` // as libvirt has it
	Problems  []string        `json:"problems,omitempty"`  // why something is missing
}

// Disk is a disk of a running VM, as QEMU has it.
type Disk struct {
	Target        string `json:"target"`
	Path          string `json:"path"`
	CapacityBytes uint64 `json:"capacityBytes"`
	FileBytes     uint64 `json:"fileBytes"`
	ReadBytes     uint64 `json:"readBytes"`
	WrittenBytes  uint64 `json:"writtenBytes"`
}

// Inspect collects what is known of a VM; what cannot be had is among the problems.
func (n *Node) Inspect(ctx context.Context, vm VM) Inspection {
	all := Inspection{VM: vm}
	problem := func(err error) {
		if err != nil {
			all.Problems = append(all.Problems, err.Error())
		}
	}
	box, err := n.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: vm.SandboxID, Verbose: true})
	all.Sandbox, err = clean(box, err)
	problem(err)
	if vm.ContainerID == "" {
		return all
	}
	container, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: vm.ContainerID, Verbose: true})
	all.Container, err = clean(container, err)
	problem(err)
	if !vm.Running() {
		return all
	}
	stats, err := n.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: vm.ContainerID})
	all.Stats, err = clean(stats, err)
	problem(err)
	domains, err := n.Domains(ctx)
	if err != nil {
		problem(err)
		return all
	}
	all.DomainXML, err = domains.Describe(ctx, vm.DomainUUID)
	problem(err)
	asking, cancel := context.WithTimeout(ctx, answerTime) // a hung QEMU never answers
	defer cancel()
	live, err := domains.Stats(asking, vm.DomainUUID)
	problem(err)
	for _, d := range live.Disks {
		all.Disks = append(all.Disks, Disk{d.Target, d.Path, d.Capacity, d.Physical, d.ReadBytes, d.WriteBytes})
	}
	return all
}

// clean makes JSON without secrets of a call's answer.
func clean(answer proto.Message, err error) (json.RawMessage, error) {
	if err != nil {
		return nil, Native(err)
	}
	document, err := protojson.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return redact.JSON(document, harmless)
}

// harmless annotations are Ambipod's settings, but those that carry cloud-init data.
func harmless(name string) bool {
	for _, a := range annotations.Table {
		if name == a.Name || name == a.Alias {
			short := strings.TrimPrefix(a.Name, annotations.Domain)
			return short != "user-data" && short != "user-data-script" && short != "meta-data" && short != "ssh-keys"
		}
	}
	return false
}

// WriteInspection prints an inspection.
func WriteInspection(to io.Writer, format string, all Inspection) error {
	if format != FormatJSON && format != FormatYAML {
		return fmt.Errorf("output format %q is neither json nor yaml: %w", format, errdefs.ErrInvalidArgument)
	}
	return WriteDocument(to, format, all)
}
