//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"libvirt.org/go/libvirtxml"

	"github.com/ambipod/ambipod/tests/node"
)

// benchRounds is how many pairs of starts one benchmark iteration takes the
// medians of: a start takes half a second and the machine is noisy.
const benchRounds = 10

// BenchmarkVMStart measures how long a VM pod takes from RunPodSandbox to
// StartContainer's answer, its image present, and beside it `virsh create` of the
// same domain with QEMU itself in vmwrapper's place.
func BenchmarkVMStart(b *testing.B) {
	n := benchNode(b)
	var pods, virsh []time.Duration
	for b.Loop() {
		for range benchRounds {
			pod, bare := startPair(b, n)
			pods, virsh = append(pods, pod), append(virsh, bare)
		}
	}
	b.ReportMetric(milliseconds(median(pods)), "ms/pod")
	b.ReportMetric(milliseconds(median(virsh)), "ms/virsh-create")
	b.ReportMetric(milliseconds(median(pods)-median(virsh)), "ms/above")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

func benchNode(b *testing.B) *node.Node {
	b.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		b.Fatal(err)
	}
	n, err := node.Start(b.Context(), node.Config{
		Checkout: top, Name: fmt.Sprintf("bench%d", os.Getpid()), Without: []string{node.Kubelet},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), downTime)
		defer cancel()
		if err := n.Stop(ctx); err != nil {
			b.Error(err)
		}
	})
	return n
}

// startPair starts a VM pod through criproxy, and the same domain through virsh.
func startPair(b *testing.B, n *node.Node) (pod, virsh time.Duration) {
	b.Helper()
	conn, err := node.Dial(n.CRISocket())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	cri := runtimeapi.NewRuntimeServiceClient(conn)
	spec := &runtimeapi.ImageSpec{Image: node.VMImage}
	if _, err := runtimeapi.NewImageServiceClient(conn).PullImage(b.Context(), &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		b.Fatal(err)
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "e2e", Uid: uuid.NewString()},
		LogDirectory: b.TempDir(),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.Cgroup()},
	}
	began := time.Now()
	sandbox, err := cri.RunPodSandbox(b.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: vmKind.handler})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		request := &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetPodSandboxId()}
		if _, err := cri.RemovePodSandbox(b.Context(), request); err != nil {
			b.Fatal(err)
		}
	}()
	container := containerConfig(vmKind)
	container.LogPath = "0.log"
	created, err := cri.CreateContainer(b.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox.GetPodSandboxId(), Config: container, SandboxConfig: config,
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := cri.StartContainer(b.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		b.Fatal(err)
	}
	pod = time.Since(began)
	// Its disks are free for the twin only when it has stopped.
	description := domainOf(b, n)
	if _, err := cri.StopContainer(b.Context(), &runtimeapi.StopContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		b.Fatal(err)
	}
	return pod, virshCreate(b, n, description)
}

func runVirsh(b *testing.B, n *node.Node, args ...string) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "virsh", append([]string{"-q", "-c", n.LibvirtURI()}, args...)...).Output()
	if err != nil {
		b.Fatalf("virsh %v: %v", args, err)
	}
	return string(out)
}

// domainOf describes the node's only domain so that virsh can start it without
// vmruntime.
func domainOf(b *testing.B, n *node.Node) *libvirtxml.Domain {
	b.Helper()
	name := strings.TrimSpace(runVirsh(b, n, "list", "--name"))
	domain := new(libvirtxml.Domain)
	if err := domain.Unmarshal(runVirsh(b, n, "dumpxml", "--inactive", name)); err != nil {
		b.Fatal(err)
	}
	domain.Name, domain.UUID, domain.ID = "twin", uuid.NewString(), nil
	domain.QEMUCommandline = nil // what vmwrapper is told
	domain.SysInfo = nil         // has the old UUID in it
	domain.Devices.Emulator = "/usr/bin/qemu-system-x86_64"
	return domain
}

func virshCreate(b *testing.B, n *node.Node, domain *libvirtxml.Domain) time.Duration {
	b.Helper()
	text, err := domain.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "domain.xml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	runVirsh(b, n, "create", file)
	took := time.Since(began)
	runVirsh(b, n, "destroy", domain.Name)
	return took
}
