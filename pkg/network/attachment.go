package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// attachment is what has to be known to undo an ADD. It is written before ADD
// runs and deleted after DEL has succeeded.
type attachment struct {
	SandboxID    string          `json:"sandboxID"`
	NetNS        string          `json:"netns"`
	Config       json.RawMessage `json:"config"` // configuration list as it was at ADD
	Args         [][2]string     `json:"args"`
	Capabilities map[string]any  `json:"capabilities,omitempty"`
}

func newAttachment(pod Pod, netnsPath string, list *libcni.NetworkConfigList) (attachment, error) {
	config, err := inlined(list)
	if err != nil {
		return attachment{}, err
	}
	return attachment{
		SandboxID: pod.SandboxID,
		NetNS:     netnsPath,
		Config:    config,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.SandboxID},
			{"K8S_POD_UID", pod.UID},
		},
		Capabilities: capabilities(pod),
	}, nil
}

// list returns the configuration that ADD was run with.
func (a attachment) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, fmt.Errorf("stored CNI configuration of sandbox %s: %w: %w", a.SandboxID, err, errdefs.ErrDataLoss)
	}
	return list, nil
}

// runtimeConf returns the arguments of a CNI call; netnsPath is empty when the
// namespace is gone, which the specification allows for DEL.
func (a attachment) runtimeConf(netnsPath string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID:    a.SandboxID,
		NetNS:          netnsPath,
		IfName:         ifName,
		Args:           a.Args,
		CapabilityArgs: a.Capabilities,
	}
}

type portMappingArg struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type bandwidthArg struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

// capabilities are the arguments that libcni passes on to those plugins that
// declare them (https://www.cni.dev/docs/conventions/).
func capabilities(pod Pod) map[string]any {
	args := map[string]any{}
	if ports := portMappings(pod.PortMappings); len(ports) > 0 {
		args["portMappings"] = ports
	}
	if pod.IngressBandwidth > 0 || pod.EgressBandwidth > 0 {
		args["bandwidth"] = bandwidth(pod.IngressBandwidth, pod.EgressBandwidth)
	}
	if len(pod.DNS.Servers)+len(pod.DNS.Searches)+len(pod.DNS.Options) > 0 {
		args["dns"] = pod.DNS
	}
	if pod.CgroupParent != "" {
		args["cgroupPath"] = pod.CgroupParent
	}
	if len(pod.Annotations) > 0 {
		args["io.kubernetes.cri.pod-annotations"] = pod.Annotations
	}
	return args
}

func portMappings(mappings []PortMapping) []portMappingArg {
	var out []portMappingArg
	for _, p := range mappings {
		if p.HostPort == 0 {
			continue
		}
		out = append(out, portMappingArg{p.HostPort, p.ContainerPort, strings.ToLower(p.Protocol), p.HostIP})
	}
	return out
}

// bandwidth limits rates only: like other runtimes it leaves bursts unlimited.
func bandwidth(ingress, egress int64) bandwidthArg {
	var b bandwidthArg
	if ingress > 0 {
		b.IngressRate, b.IngressBurst = ingress, math.MaxInt32
	}
	if egress > 0 {
		b.EgressRate, b.EgressBurst = egress, math.MaxInt32
	}
	return b
}

// attachmentStore keeps one file for each attachment.
type attachmentStore struct{ dir string }

func (s attachmentStore) path(id string) string { return filepath.Join(s.dir, id+".json") }

// save writes the file so that after a crash it is there whole or not at all.
func (s attachmentStore) save(a attachment) error {
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode CNI attachment of sandbox %s: %w", a.SandboxID, err)
	}
	if err := writeSynced(s.path(a.SandboxID), data); err != nil {
		return fmt.Errorf("save CNI attachment of sandbox %s: %w", a.SandboxID, err)
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// load returns ErrNotFound when the sandbox has no attachment.
func (s attachmentStore) load(id string) (attachment, error) {
	data, err := os.ReadFile(s.path(id))
	if errors.Is(err, os.ErrNotExist) {
		return attachment{}, fmt.Errorf("sandbox %s has no CNI attachment: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return attachment{}, fmt.Errorf("read CNI attachment of sandbox %s: %w", id, err)
	}
	var a attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return attachment{}, fmt.Errorf("CNI attachment %s is unreadable, so its addresses cannot be released: repair it, or delete it and release them by hand: %w: %w",
			s.path(id), err, errdefs.ErrDataLoss)
	}
	return a, nil
}

func (s attachmentStore) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove CNI attachment of sandbox %s: %w", id, err)
	}
	return nil
}

// ids lists the sandboxes that have an attachment.
func (s attachmentStore) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list CNI attachments: %w", err)
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			out = append(out, id)
		}
	}
	return out, nil
}
