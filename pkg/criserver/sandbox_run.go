package criserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
)

// RunPodSandbox gives a pod its network namespace and addresses. The VM comes with
// CreateContainer.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (_ *runtimeapi.RunPodSandboxResponse, err error) {
	config := req.GetConfig()
	if err := checkSandboxConfig(config, req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	record, release, err := s.reserveSandbox(ctx, config, req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	defer release() // when all is undone
	var steps undo
	defer func() { steps.unwind(ctx, &err) }()
	failpoint.Hit("RunPodSandbox/recorded")
	steps.push("delete record", func(context.Context) error { return s.Records.Sandboxes.Delete(record.ID) })

	result, err := s.Network.Setup(ctx, networkPod(record.ID, config))
	if err != nil {
		s.tidySoon() // in case that plugins refused to undo their work
		return nil, fmt.Errorf("network of pod %s: %w", podName(config), err)
	}
	failpoint.Hit("RunPodSandbox/network-set-up")
	steps.push("tear the network down", func(ctx context.Context) error {
		return s.Network.Teardown(ctx, networkPod(record.ID, config))
	})
	encoded, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("encode network result of pod %s: %w", podName(config), err)
	}
	if _, err := s.Records.Sandboxes.Update(record.ID, func(r *metadata.Sandbox) error {
		r.State, r.Network = metadata.SandboxReady, encoded
		return nil
	}); err != nil {
		return nil, err
	}
	failpoint.Hit("RunPodSandbox/ready")
	steps.disarm()
	s.Logger.InfoContext(ctx, "sandbox is ready", "pod", podName(config), "sandbox", record.ID, "ips", addresses(result))
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: record.ID}, nil
}

// reserveSandbox writes the record of a new sandbox, unless one of the same pod and
// attempt exists: a second call while the first still works must not do it twice. Until
// release is called the sandbox's lock is held, so that whoever wants it stopped, as
// kubelet does when its pod is deleted meanwhile, waits until it is made or undone.
func (s *Server) reserveSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (_ metadata.Sandbox, release func(), err error) {
	unlock, err := s.locks.lock(ctx, "names of sandboxes")
	if err != nil {
		return metadata.Sandbox{}, nil, err
	}
	defer unlock()
	created, err := s.nameSandbox(config.GetMetadata())
	if err != nil {
		return metadata.Sandbox{}, nil, err
	}
	encoded, err := proto.Marshal(config)
	if err != nil {
		return metadata.Sandbox{}, nil, fmt.Errorf("encode configuration of pod %s: %w", podName(config), err)
	}
	record := metadata.Sandbox{
		ID: randomHex(idBytes), Config: encoded, Handler: handler, CreatedAt: created, State: metadata.SandboxCreating,
	}
	unlockOwn, err := s.locks.lock(ctx, record.ID) // at once, nobody knows the ID
	if err != nil {
		return metadata.Sandbox{}, nil, err
	}
	if err := s.Records.Sandboxes.Create(record.ID, record); err != nil {
		unlockOwn()
		return metadata.Sandbox{}, nil, err
	}
	s.making.enter(record.ID)
	return record, func() {
		s.making.leave(record.ID)
		unlockOwn()
	}, nil
}

// nameSandbox refuses a sandbox that exists, and returns when a new one of that name was
// created: after all others of its pod. It needs the lock of the names.
func (s *Server) nameSandbox(wanted *runtimeapi.PodSandboxMetadata) (created time.Time, err error) {
	created = failpoint.Now()
	existing, err := s.sandboxes()
	if err != nil {
		return created, err
	}
	for _, other := range existing {
		if other.config.GetMetadata().GetUid() == wanted.GetUid() {
			// The youngest of a pod counts, as with containers; see makeNewest.
			created = after(created, other.CreatedAt)
		}
		if other.State == metadata.SandboxCreating && !s.making.has(other.ID) {
			// It failed, and could not be removed, as when the disk was full or a plugin
			// refused. That keeps nobody else, no other pod above all, from being made.
			s.overdue.enter(other.ID)
			s.tidySoon()
			continue
		}
		if proto.Equal(other.config.GetMetadata(), wanted) {
			return created, fmt.Errorf("sandbox %s of pod %s, attempt %d, exists already in state %s: %w",
				other.ID, podName(other.config), wanted.GetAttempt(), other.State, errdefs.ErrAlreadyExists)
		}
	}
	return created, nil
}

// checkSandboxConfig refuses what a VM pod cannot be.
func checkSandboxConfig(config *runtimeapi.PodSandboxConfig, handler string) error {
	meta := config.GetMetadata()
	if meta.GetName() == "" || meta.GetNamespace() == "" || meta.GetUid() == "" {
		return fmt.Errorf("sandbox configuration needs metadata with name, namespace and uid, it has %q, %q and %q: %w",
			meta.GetName(), meta.GetNamespace(), meta.GetUid(), errdefs.ErrInvalidArgument)
	}
	if !slices.Contains(handlers, handler) {
		return fmt.Errorf("pod %s asks for the runtime handler %q, this runtime has only %q: use a RuntimeClass with that handler: %w",
			podName(config), handler, handlers[1], errdefs.ErrInvalidArgument)
	}
	namespaces := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, namespace := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
	}{
		{"hostNetwork", namespaces.GetNetwork()},
		{"hostPID", namespaces.GetPid()},
		{"hostIPC", namespaces.GetIpc()},
	} {
		if namespace.mode == runtimeapi.NamespaceMode_NODE {
			return fmt.Errorf("pod %s sets %s, but a VM has a kernel of its own and cannot share the node's: remove %s, or run the pod as containers: %w",
				podName(config), namespace.field, namespace.field, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// podName is how people name a pod.
func podName(config *runtimeapi.PodSandboxConfig) string {
	return config.GetMetadata().GetNamespace() + "/" + config.GetMetadata().GetName()
}

// networkPod is what the network needs to know of a pod.
func networkPod(id string, config *runtimeapi.PodSandboxConfig) network.Pod {
	// CreateContainer refuses annotations that cannot be read; there the pod's owner
	// is told, and until then there is no guest that could use the network.
	settings, err := annotations.Parse(config.GetAnnotations())
	if err != nil {
		settings = annotations.Settings{}
	}
	pod := network.Pod{
		IngressBandwidth: settings.IngressBandwidth,
		EgressBandwidth:  settings.EgressBandwidth,
		AllowSpoofing:    settings.AllowSpoofing,

		SandboxID:    id,
		Name:         config.GetMetadata().GetName(),
		Namespace:    config.GetMetadata().GetNamespace(),
		UID:          config.GetMetadata().GetUid(),
		Hostname:     config.GetHostname(),
		CgroupParent: config.GetLinux().GetCgroupParent(),
		Labels:       config.GetLabels(),
		Annotations:  config.GetAnnotations(),
		DNS: network.DNS{
			Servers:  config.GetDnsConfig().GetServers(),
			Searches: config.GetDnsConfig().GetSearches(),
			Options:  config.GetDnsConfig().GetOptions(),
		},
	}
	for _, port := range config.GetPortMappings() {
		if port.GetHostPort() == 0 {
			continue // a containerPort without hostPort is documentation
		}
		pod.PortMappings = append(pod.PortMappings, network.PortMapping{
			Protocol:      port.GetProtocol().String(),
			ContainerPort: port.GetContainerPort(),
			HostPort:      port.GetHostPort(),
			HostIP:        port.GetHostIp(),
		})
	}
	return pod
}
