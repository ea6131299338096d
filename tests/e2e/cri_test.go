//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// client talks CRI to a node as kubelet does.
type client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
	n *node.Node
}

func dial(t *testing.T, n *node.Node) client {
	t.Helper()
	return dialSocket(t, n, n.CRISocket())
}

func dialSocket(t *testing.T, n *node.Node, socket string) client {
	t.Helper()
	conn, err := node.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), n}
}

// kind is a sort of pod; tests that must hold for both take it as parameter.
type kind struct {
	name    string
	handler string
	image   string
	command []string
	ready   string // what its log says when it has started
}

var (
	containerKind = kind{
		name: "container", image: node.ContainerImage, ready: "hello from a container",
		command: []string{"/bin/sh", "-c", "echo hello from a container; exec httpd -f -p 80 -h /var/www"},
	}
	vmKind = kind{name: "vm", handler: "vm", image: node.VMImage, ready: "login:"}
)

// guestMemory is the size of the tests' VMs.
const guestMemory = 192 << 20

// podConfig describes a pod that kubelet might have made.
func podConfig(t *testing.T, n *node.Node, k kind) *runtimeapi.PodSandboxConfig {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	uid := fmt.Sprintf("%s-%d", k.name, time.Now().UnixNano())
	logs := filepath.Join(n.PodLogDir(), uid)
	if err := os.MkdirAll(filepath.Join(logs, k.name), 0o755); err != nil {
		t.Fatal(err)
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: uid},
		Hostname:     "e2e-" + k.name,
		LogDirectory: logs,
		Labels:       map[string]string{"kind": k.name},
		DnsConfig:    &runtimeapi.DNSConfig{},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.Cgroup()},
	}
}

func containerConfig(k kind) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: k.name},
		Image:    &runtimeapi.ImageSpec{Image: k.image},
		Command:  k.command,
		LogPath:  k.name + "/0.log",
		Labels:   map[string]string{"kind": k.name},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: guestMemory, CpuPeriod: 100000, CpuQuota: 100000,
		}},
	}
}

// pod is a pod with one container, made through the CRI.
type pod struct {
	client
	config    *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	kind      kind
	sandboxID string
	id        string // of the container
}

// run starts a pod of the kind; it is removed when the test ends, and nothing may
// be left of it then.
func (c client) run(t *testing.T, k kind) *pod {
	t.Helper()
	c.pull(t, k)
	p := &pod{client: c, config: podConfig(t, c.n, k), container: containerConfig(k), kind: k}
	t.Cleanup(func() { p.removeAtEnd(t) })
	sandbox, err := c.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: k.handler})
	if err != nil {
		t.Fatal(err)
	}
	p.sandboxID = sandbox.GetPodSandboxId()
	p.create(t)
	p.start(t)
	return p
}

func (c client) pull(t *testing.T, k kind) {
	t.Helper()
	spec := &runtimeapi.ImageSpec{Image: k.image}
	if _, err := c.PullImage(deadline(t), &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) create(t *testing.T) {
	t.Helper()
	created, err := p.CreateContainer(deadline(t), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.sandboxID, Config: p.container, SandboxConfig: p.config,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.id = created.GetContainerId()
}

func (p *pod) start(t *testing.T) {
	t.Helper()
	if _, err := p.StartContainer(deadline(t), &runtimeapi.StartContainerRequest{ContainerId: p.id}); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	answer, err := p.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.id})
	return answer.GetStatus(), err
}

func (p *pod) ip(t *testing.T) string {
	t.Helper()
	answer, err := p.PodSandboxStatus(deadline(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandboxID})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetStatus().GetNetwork().GetIp()
}

// waitReady waits until the pod's log shows that it has started.
func (p *pod) waitReady(t *testing.T) {
	t.Helper()
	if _, err := node.WaitPodLog(deadline(t), p.logPath(), p.kind.ready); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) logPath() string {
	return filepath.Join(p.config.GetLogDirectory(), p.container.GetLogPath())
}

// remove stops and removes all of the pod, as kubelet does, giving the container
// that many seconds to end by itself.
func (p *pod) remove(ctx context.Context, grace int64) error {
	if p.id != "" {
		if _, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.id, Timeout: grace}); err != nil {
			return err
		}
		if _, err := p.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.id}); err != nil {
			return err
		}
	}
	if p.sandboxID == "" {
		return nil
	}
	if _, err := p.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandboxID}); err != nil {
		return err
	}
	_, err := p.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandboxID})
	return err
}

// removeAtEnd runs when the test's own context is gone. All of the CRI's removals
// may be repeated, so it does not matter what the test removed already.
func (p *pod) removeAtEnd(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	defer cancel()
	if err := p.remove(ctx, 0); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(p.config.GetLogDirectory()); err != nil {
		t.Error(err)
	}
}
