//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// refusal is what a wrong request must be answered with: a code, and one sentence
// with these parts in it.
type refusal struct {
	code  codes.Code
	parts []string
}

func (r refusal) check(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("the call succeeded")
	}
	if got := status.Code(err); got != r.code {
		t.Errorf("the code is %s, want %s: %v", got, r.code, err)
	}
	text := status.Convert(err).Message()
	for _, part := range r.parts {
		if !strings.Contains(text, part) {
			t.Errorf("the message does not contain %q: %s", part, text)
		}
	}
	if strings.Contains(text, "\n") {
		t.Errorf("the message has several lines: %q", text)
	}
}

func TestBadPods(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	for _, test := range []struct {
		name    string
		change  func(*pod)
		refused refusal
	}{
		{
			"unknown annotation value",
			func(p *pod) { p.config.Annotations = map[string]string{"vm.ambipod.io/disk-bus": "floppy"} },
			refusal{codes.InvalidArgument, []string{"vm.ambipod.io/disk-bus", "floppy", "virtio"}},
		},
		{
			"unknown annotation",
			func(p *pod) { p.config.Annotations = map[string]string{"vm.ambipod.io/disk-buss": "virtio"} },
			refusal{codes.InvalidArgument, []string{"vm.ambipod.io/disk-buss"}},
		},
		{
			"root disk smaller than its image",
			func(p *pod) { p.config.Annotations = map[string]string{"vm.ambipod.io/root-volume-size": "1Mi"} },
			refusal{codes.InvalidArgument, []string{"1048576 bytes is smaller than its image"}},
		},
		{
			"network of the node",
			func(p *pod) {
				p.config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
				}
			},
			refusal{codes.InvalidArgument, []string{"hostNetwork", "run the pod as containers"}},
		},
		{
			"more huge pages than any machine has",
			func(p *pod) {
				p.container.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1 << 45}}
			},
			refusal{codes.ResourceExhausted, []string{"needs 16777216 huge pages of 2048 KiB", "vm.nr_hugepages"}},
		},
		{
			"image that was not pulled",
			func(p *pod) { p.container.Image.Image = "vm.ambipod.io/http/127.0.0.1/other.qcow2:latest" },
			refusal{codes.NotFound, []string{"vm.ambipod.io/http/127.0.0.1/other.qcow2"}},
		},
		{
			"container image in a VM pod",
			func(p *pod) { p.container.Image.Image = node.ContainerImage },
			refusal{codes.InvalidArgument, []string{node.ContainerImage, "vm.ambipod.io/"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.pull(t, vmKind)
			p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
			t.Cleanup(func() { p.removeAtEnd(t) })
			test.change(p)
			test.refused.check(t, p.tryRun(t))
			p.removeAtEnd(t)
			nothingLeft(t, n)
		})
	}
}

// tryRun is run with errors: where a mistake is found is the runtime's choice.
func (p *pod) tryRun(t *testing.T) error {
	t.Helper()
	sandbox, err := p.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.kind.handler})
	if err != nil {
		return err
	}
	p.sandboxID = sandbox.GetPodSandboxId()
	created, err := p.CreateContainer(deadline(t), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.sandboxID, Config: p.container, SandboxConfig: p.config,
	})
	if err != nil {
		return err
	}
	p.id = created.GetContainerId()
	_, err = p.StartContainer(deadline(t), &runtimeapi.StartContainerRequest{ContainerId: p.id})
	return err
}

func TestSecondContainerInAVMPod(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	p := c.run(t, vmKind)
	second := containerConfig(vmKind)
	second.Metadata.Name = "sidecar"
	_, err := p.CreateContainer(deadline(t), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.sandboxID, Config: second, SandboxConfig: p.config,
	})
	refusal{codes.InvalidArgument, []string{"sidecar", p.config.GetMetadata().GetName(), "exactly one"}}.check(t, err)
	if status, err := p.status(deadline(t)); err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the first VM is %s after the refusal, %v", status.GetState(), err)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
}

func TestUnknownRuntimeHandler(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	config := podConfig(t, n, vmKind)
	_, err := c.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "kata"})
	if err == nil || !strings.Contains(err.Error(), "kata") {
		t.Errorf("a pod with the runtime handler kata: %v, want an error with its name", err)
	}
	// The same asked of vmruntime itself.
	vm := dialSocket(t, n, n.VMRuntimeSocket())
	_, err = vm.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "kata"})
	refusal{codes.InvalidArgument, []string{"kata", `"vm"`}}.check(t, err)
	nothingLeft(t, n)
}

func TestBadImages(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	serve(t, n, "nodisk.qcow2", []byte("this is a text and no disk image\n"))
	const site = "vm.ambipod.io/http/127.0.0.1/"
	wrong := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for _, test := range []struct {
		name    string
		image   string
		refused refusal
	}{
		{"no disk", site + "nodisk.qcow2:latest", refusal{codes.InvalidArgument, []string{"nodisk.qcow2", "no qcow2 image"}}},
		{"404", site + "absent.qcow2:latest", refusal{codes.NotFound, []string{"absent.qcow2"}}},
		{"wrong digest", strings.TrimSuffix(node.VMImage, ":latest") + "@" + wrong, refusal{codes.DataLoss, []string{wrong}}},
		{"no server", "vm.ambipod.io/http/127.0.0.1:9/disk.qcow2", refusal{codes.Unavailable, []string{"127.0.0.1:9"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := &runtimeapi.ImageSpec{Image: test.image}
			_, err := c.PullImage(deadline(t), &runtimeapi.PullImageRequest{Image: spec})
			test.refused.check(t, err)
			answer, err := c.ImageStatus(deadline(t), &runtimeapi.ImageStatusRequest{Image: spec})
			if err != nil || answer.GetImage() != nil {
				t.Errorf("after the refusal ImageStatus answers %v, %v; want no image", answer.GetImage(), err)
			}
		})
	}
}

// serve puts a file on the node's image server.
func serve(t *testing.T, n *node.Node, name string, content []byte) {
	t.Helper()
	path := filepath.Join(n.SiteDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
}

func TestNoCNIConfiguration(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	from := n.CNIConfig()
	if err := os.Rename(from, from+".hidden"); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := os.Rename(from+".hidden", from); err != nil {
			t.Error(err)
		}
		for _, socket := range []string{n.ContainerdSocket(), n.VMRuntimeSocket()} {
			eventually(t, socket+" is ready again", func(ctx context.Context) error { return node.RuntimeReady(ctx, socket) })
		}
	}
	defer restore()
	_, err := c.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: podConfig(t, n, vmKind), RuntimeHandler: vmKind.handler})
	refusal{codes.Unavailable, []string{filepath.Dir(from)}}.check(t, err)
	if err := node.RuntimeReady(deadline(t), n.VMRuntimeSocket()); err == nil || !strings.Contains(err.Error(), runtimeapi.NetworkReady) {
		t.Errorf("vmruntime's status without CNI configuration: %v, want %s false", err, runtimeapi.NetworkReady)
	}
	nothingLeft(t, n)
}

func TestLibvirtdDown(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	if err := n.Terminate(deadline(t), node.Libvirtd); err != nil {
		t.Fatal(err)
	}
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	err := p.tryRun(t)
	refusal{codes.Unavailable, []string{"libvirt", n.LibvirtURI()}}.check(t, err)
	if err := node.RuntimeReady(deadline(t), n.VMRuntimeSocket()); err == nil || !strings.Contains(err.Error(), runtimeapi.RuntimeReady) {
		t.Errorf("vmruntime's status without libvirtd: %v, want %s false", err, runtimeapi.RuntimeReady)
	}
	if err := n.StartDaemon(deadline(t), node.Libvirtd); err != nil {
		t.Fatal(err)
	}
	eventually(t, "vmruntime is ready again", func(ctx context.Context) error {
		return node.RuntimeReady(ctx, n.VMRuntimeSocket())
	})
	p.removeAtEnd(t)
	nothingLeft(t, n)
}
