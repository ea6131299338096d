//go:build integration

package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// config is that of a node with containerd only. Names differ from test to test
// and from run to run, so that runs do not disturb each other.
func config(t *testing.T) node.Config {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return node.Config{
		Checkout: top,
		Name:     fmt.Sprintf("n%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))),
		Without:  []string{node.Libvirtd, node.VMRuntime, node.CRIProxy, node.Kubelet},
	}
}

func start(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.Start(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, n) })
	return n
}

func stop(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Error(err)
	}
	remains, err := n.Remains()
	if err != nil {
		t.Error(err)
	}
	for _, what := range remains {
		t.Errorf("left after Stop: %s", what)
	}
}

// runContainer starts the example's container pod.
func runContainer(t *testing.T, n *node.Node) (ip string) {
	t.Helper()
	pod, err := node.LoadPod("../../examples/container-pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.Containers[0].Image = node.ContainerImage
	if err := n.Apply(pod); err != nil {
		t.Fatal(err)
	}
	running, err := n.WaitRunning(deadline(t), pod.Name)
	if err != nil {
		t.Fatal(err)
	}
	return running.Status.PodIP
}

func page(t *testing.T, ip string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(deadline(t), http.MethodGet, "http://"+ip, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestKubeletRunsAContainerPod compares a node with and one without criproxy,
// whose other backend is absent.
func TestKubeletRunsAContainerPod(t *testing.T) {
	for name, without := range map[string][]string{
		"proxy":  {node.Libvirtd, node.VMRuntime},
		"direct": {node.Libvirtd, node.VMRuntime, node.CRIProxy},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			cfg.Without = without
			runAndRemove(t, start(t, cfg))
		})
	}
}

func runAndRemove(t *testing.T, n *node.Node) {
	t.Helper()
	if got := page(t, runContainer(t, n)); got != "container" {
		t.Errorf("the pod's page seen from the machine is %q, want %q", got, "container")
	}
	if left := leftovers(t, n); len(left) == 0 {
		t.Error("a running pod leaves nothing to be found by Leftovers")
	}
	if err := n.Delete("web-container"); err != nil {
		t.Fatal(err)
	}
	// Without anybody's help: kubelet collects garbage once a minute.
	err := node.Until(deadline(t), "nothing is left of the pod", func(ctx context.Context) error {
		left, err := n.Leftovers(ctx)
		if err != nil || len(left) == 0 {
			return err
		}
		return errors.New(strings.Join(left, "; "))
	})
	if err != nil {
		t.Error(err)
	}
}

func leftovers(t *testing.T, n *node.Node) []string {
	t.Helper()
	left, err := n.Leftovers(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestKilledDaemonComesBack(t *testing.T) {
	n := start(t, config(t))
	if err := n.Kill(deadline(t), node.Containerd); err != nil {
		t.Fatal(err)
	}
	if n.Alive(node.Containerd) {
		t.Fatal("containerd is alive after Kill")
	}
	if err := n.StartDaemon(deadline(t), node.Containerd); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(deadline(t), node.Containerd); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(deadline(t), node.Containerd); !errdefs.IsAlreadyExists(err) {
		t.Errorf("start of a running daemon: %v, want ErrAlreadyExists", err)
	}
}

func TestStopSweepsUpAfterACrash(t *testing.T) {
	cfg := config(t)
	cfg.Without = []string{node.Libvirtd, node.VMRuntime, node.CRIProxy}
	n := start(t, cfg)
	runContainer(t, n)
	for _, daemon := range []string{node.Kubelet, node.Containerd} {
		if err := n.Kill(deadline(t), daemon); err != nil {
			t.Fatal(err)
		}
	}
	all, err := node.All(cfg.Checkout)
	if err != nil {
		t.Fatal(err)
	}
	again := slices.IndexFunc(all, func(one *node.Node) bool { return one.Root() == n.Root() })
	if again < 0 {
		t.Fatalf("%s is not among the nodes of the checkout", n.Root())
	}
	stop(t, all[again])
	if _, err := node.Load(n.Root()); !errdefs.IsNotFound(err) {
		t.Errorf("Load after Stop: %v, want ErrNotFound", err)
	}
}

func TestTwoNodesAreApart(t *testing.T) {
	a, b := config(t), config(t)
	b.Name += "-b"
	a.OwnRoot, b.OwnRoot = true, true
	first, second := start(t, a), start(t, b)
	rootsAreApart(t, first, second)
	if first.Root() == second.Root() || first.KubeletURL() == second.KubeletURL() {
		t.Errorf("both nodes are in %s at %s", first.Root(), first.KubeletURL())
	}
	if _, err := node.Start(deadline(t), a); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second start of the same node: %v, want ErrAlreadyExists", err)
	}
	if !first.Alive(node.Containerd) {
		t.Error("the refused start ended the running node's containerd")
	}
}

// rootsAreApart writes into the root directory of one node.
func rootsAreApart(t *testing.T, first, second *node.Node) {
	t.Helper()
	const state = "/var/lib/ambipod"
	for _, dir := range []string{"/etc", state} {
		name := filepath.Join(dir, first.Name())
		if err := os.WriteFile(first.RootDir()+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(first.RootDir() + name); err != nil {
			t.Error(err)
		}
		for _, root := range []string{"/", second.RootDir()} {
			if _, err := os.Stat(root + name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s of one node is seen below %s: %v", name, root, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(first.VMStateDir(), first.Name())); err != nil {
		t.Errorf("%s is another folder: %v", state, err)
	}
	// Control groups are those of the node alone, whatever their version.
	for _, root := range []string{first.RootDir(), second.RootDir()} {
		for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory"} {
			if _, err := os.Stat(root + tree + first.Cgroup()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("control groups of the machine are seen below %s: %v", root, err)
			}
		}
	}
}

func TestDaemonThatDiesIsReported(t *testing.T) {
	cfg := config(t)
	cfg.Without = append(cfg.Without, node.Containerd)
	n := start(t, cfg)
	settings := filepath.Join(n.Root(), "etc", "containerd.toml")
	if err := os.WriteFile(settings, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err := n.StartDaemon(deadline(t), node.Containerd)
	if err == nil {
		t.Fatal("containerd started with a broken configuration")
	}
	for _, want := range []string{"its process ended", n.LogFile(node.Containerd), "toml"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not contain %q: %v", want, err)
		}
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the death was noticed after %s, it must not wait for the deadline", took)
	}
}

func TestContainerdPullsFromTheInventedRegistry(t *testing.T) {
	n := start(t, config(t))
	conn, err := node.Dial(n.CRISocket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	image, err := runtimeapi.NewImageServiceClient(conn).PullImage(deadline(t),
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.ContainerImage}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(image.GetImageRef(), "sha256:") {
		t.Errorf("image reference is %q, want a digest", image.GetImageRef())
	}
}
