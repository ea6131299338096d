//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// TestCrictl holds both kinds of pod to the same expectations, through the tool
// that people use.
func TestCrictl(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	container, vm := c.run(t, containerKind), c.run(t, vmKind)
	for _, p := range []*pod{container, vm} {
		p.waitReady(t)
		t.Run(p.kind.name, func(t *testing.T) { crictlSees(t, p) })
	}
	if strings.Contains(container.id, ".") || !strings.HasPrefix(vm.id, "vm.") {
		t.Errorf("IDs are %s (container) and %s (VM); only the VM's has the prefix", container.id, vm.id)
	}
	t.Run("lists contain both", func(t *testing.T) {
		for _, verb := range []string{"pods", "ps"} {
			ids := strings.Fields(crictl(t, n, verb, "--quiet"))
			if len(ids) != 2 {
				t.Errorf("crictl %s --quiet lists %q, want one ID of each kind", verb, ids)
			}
		}
	})
	t.Run("page of one from the other", func(t *testing.T) {
		page := crictl(t, n, "exec", container.id, "wget", "-q", "-O", "-", "http://"+vm.ip(t)+"/")
		if !strings.Contains(page, vm.config.GetHostname()) {
			t.Errorf("the VM's page seen from the container is %q, want its host name in it", page)
		}
	})
	for _, p := range []*pod{container, vm} {
		t.Run("stop and remove "+p.kind.name, func(t *testing.T) { crictlRemoves(t, p) })
	}
	nothingLeft(t, n)
}

func crictl(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	out, err := n.RunCrictl(deadline(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// crictlSees checks what crictl shows of a running pod.
func crictlSees(t *testing.T, p *pod) {
	n := p.n
	t.Run("pods", func(t *testing.T) {
		row := crictl(t, n, "pods", "--no-trunc", "--id", p.sandboxID)
		for _, want := range []string{p.sandboxID, p.config.GetMetadata().GetName(), "e2e", "Ready"} {
			if !strings.Contains(row, want) {
				t.Errorf("crictl pods does not show %q:\n%s", want, row)
			}
		}
	})
	t.Run("ps", func(t *testing.T) {
		row := crictl(t, n, "ps", "--no-trunc", "--id", p.id)
		for _, want := range []string{p.id, p.sandboxID, p.kind.name, "Running"} {
			if !strings.Contains(row, want) {
				t.Errorf("crictl ps does not show %q:\n%s", want, row)
			}
		}
	})
	t.Run("ps by pod and by label", func(t *testing.T) {
		for _, filter := range [][]string{{"--pod", p.sandboxID}, {"--label", "kind=" + p.kind.name}, {"--name", "^" + p.kind.name + "$"}} {
			if got := strings.TrimSpace(crictl(t, n, append([]string{"ps", "--quiet"}, filter...)...)); got != p.id {
				t.Errorf("crictl ps %v lists %q, want %s", filter, got, p.id)
			}
		}
	})
	t.Run("short IDs", func(t *testing.T) {
		const short = 16
		if got := strings.TrimSpace(crictl(t, n, "ps", "--quiet", "--id", p.id[:short])); got != p.id {
			t.Errorf("crictl ps by a short ID lists %q, want %s", got, p.id)
		}
	})
	t.Run("inspect", func(t *testing.T) { crictlInspects(t, p) })
	t.Run("inspectp", func(t *testing.T) {
		var got struct {
			Status struct {
				ID      string `json:"id"`
				State   string `json:"state"`
				Network struct {
					IP string `json:"ip"`
				} `json:"network"`
			} `json:"status"`
		}
		inspect(t, n, &got, "inspectp", p.sandboxID)
		if s := got.Status; s.ID != p.sandboxID || s.State != "SANDBOX_READY" || s.Network.IP != p.ip(t) {
			t.Errorf("crictl inspectp shows %+v", s)
		}
	})
	t.Run("images", func(t *testing.T) { crictlImages(t, p) })
	t.Run("logs", func(t *testing.T) {
		if log := crictl(t, n, "logs", p.id); !strings.Contains(log, p.kind.ready) {
			t.Errorf("crictl logs does not contain %q:\n%s", p.kind.ready, log)
		}
		if tail := crictl(t, n, "logs", "--tail", "1", p.id); strings.Count(strings.TrimSpace(tail), "\n") > 0 {
			t.Errorf("crictl logs --tail 1 printed %q", tail)
		}
	})
	t.Run("stats", func(t *testing.T) { crictlStats(t, p) })
	t.Run("exec", func(t *testing.T) { crictlExecs(t, p) })
	t.Run("port-forward", func(t *testing.T) { crictlForwards(t, p, "80") })
}

// inspect reads what a verb of crictl prints about one object, in JSON.
func inspect(t *testing.T, n *node.Node, into any, verb string, ids ...string) {
	t.Helper()
	out := crictl(t, n, append([]string{verb, "--output", "json"}, ids...)...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("crictl %s %v: %v", verb, ids, err)
	}
}

func crictlInspects(t *testing.T, p *pod) {
	var got struct {
		Status struct {
			ID        string            `json:"id"`
			State     string            `json:"state"`
			CreatedAt string            `json:"createdAt"`
			StartedAt string            `json:"startedAt"`
			LogPath   string            `json:"logPath"`
			ImageRef  string            `json:"imageRef"`
			Labels    map[string]string `json:"labels"`
			Image     struct {
				Image string `json:"image"`
			} `json:"image"`
		} `json:"status"`
	}
	inspect(t, p.n, &got, "inspect", p.id)
	s := got.Status
	if s.ID != p.id || s.State != "CONTAINER_RUNNING" || s.LogPath != p.logPath() || s.Labels["kind"] != p.kind.name {
		t.Errorf("crictl inspect shows %+v", s)
	}
	if s.StartedAt < s.CreatedAt || strings.HasPrefix(s.StartedAt, "1970") {
		t.Errorf("started at %s, created at %s", s.StartedAt, s.CreatedAt)
	}
	if s.ImageRef == "" || s.Image.Image == "" {
		t.Errorf("image is %q, its reference %q", s.Image.Image, s.ImageRef)
	}
}

func crictlImages(t *testing.T, p *pod) {
	var list struct {
		Images []struct {
			ID          string   `json:"id"`
			RepoTags    []string `json:"repoTags"`
			RepoDigests []string `json:"repoDigests"`
			Size        string   `json:"size"`
		} `json:"images"`
	}
	inspect(t, p.n, &list, "images")
	for _, image := range list.Images {
		if !slices.Contains(image.RepoTags, p.kind.image) {
			continue
		}
		if image.Size == "0" || image.Size == "" || len(image.RepoDigests) == 0 {
			t.Errorf("image %s has size %q and digests %q", p.kind.image, image.Size, image.RepoDigests)
		}
		for _, name := range []string{p.kind.image, image.ID} {
			var got struct {
				Status struct {
					ID string `json:"id"`
				} `json:"status"`
			}
			inspect(t, p.n, &got, "inspecti", name)
			if got.Status.ID != image.ID {
				t.Errorf("crictl inspecti %s shows ID %q, the list says %q", name, got.Status.ID, image.ID)
			}
		}
		return
	}
	t.Errorf("crictl images does not show %s: %+v", p.kind.image, list.Images)
}

func crictlStats(t *testing.T, p *pod) {
	eventually(t, "statistics have figures", func(ctx context.Context) error {
		answer, err := p.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: p.id})
		if err != nil {
			return err
		}
		s := answer.GetStats()
		if s.GetAttributes().GetId() != p.id {
			return fmt.Errorf("statistics are of %q", s.GetAttributes().GetId())
		}
		if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			return fmt.Errorf("statistics are %v", s)
		}
		return nil
	})
	if row := crictl(t, p.n, "stats", "--id", p.id, "--output", "json"); !strings.Contains(row, p.id) {
		t.Errorf("crictl stats does not show %s: %s", p.id, row)
	}
}

// crictlRemoves ends a pod by hand and looks at each step.
func crictlRemoves(t *testing.T, p *pod) {
	n := p.n
	if _, err := n.RunCrictl(deadline(t), "rm", p.id); err == nil {
		t.Error("crictl rm removed a running container without --force")
	}
	crictl(t, n, "stop", "--timeout", "30", p.id)
	if row := crictl(t, n, "ps", "--all", "--id", p.id, "--state", "exited", "--quiet"); strings.TrimSpace(row) != p.id {
		t.Errorf("after crictl stop the exited containers with that ID are %q", row)
	}
	crictl(t, n, "stop", p.id) // again, as the CRI allows
	crictl(t, n, "rm", p.id)
	if row := crictl(t, n, "ps", "--all", "--quiet", "--pod", p.sandboxID); strings.TrimSpace(row) != "" {
		t.Errorf("after crictl rm the pod has containers %q", row)
	}
	crictl(t, n, "stopp", p.sandboxID)
	if row := crictl(t, n, "pods", "--id", p.sandboxID, "--state", "notready", "--quiet"); strings.TrimSpace(row) != p.sandboxID {
		t.Errorf("after crictl stopp the pods not ready with that ID are %q", row)
	}
	crictl(t, n, "rmp", p.sandboxID)
	if row := crictl(t, n, "pods", "--quiet", "--label", "kind="+p.kind.name); strings.TrimSpace(row) != "" {
		t.Errorf("after crictl rmp the pods of that kind are %q", row)
	}
}

// crictlExecs runs commands with and without a stream.
func crictlExecs(t *testing.T, p *pod) {
	const script = `printf 'out\n'; printf 'err\n' >&2; hostname`
	for _, way := range [][]string{{"exec", "--sync"}, {"exec"}} {
		out := crictl(t, p.n, append(way, p.id, "/bin/sh", "-c", script)...)
		if !strings.Contains(out, "out\n") || !strings.Contains(out, p.config.GetHostname()) {
			t.Errorf("crictl %v printed %q", way, out)
		}
		const status = "3"
		if _, err := p.n.RunCrictl(deadline(t), append(way, p.id, "/bin/sh", "-c", "exit "+status)...); err == nil || !strings.Contains(err.Error(), status) {
			t.Errorf("crictl %v of a command that ends with %s: %v", way, status, err)
		}
	}
	cmd := exec.CommandContext(deadline(t), p.n.Crictl(), "exec", "--interactive", p.id, "cat")
	const text = "through both directions\n"
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != text {
		t.Errorf("crictl exec -i cat gave back %q, %v; want %q", out, err, text)
	}
}

// crictlForwards fetches the pod's page at a port through kubelet's way of port-forward.
func crictlForwards(t *testing.T, p *pod, port string) {
	ctx, cancel := context.WithCancel(deadline(t))
	cmd := exec.CommandContext(ctx, p.n.Crictl(), "port-forward", p.sandboxID, "0:"+port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		// "Forwarding from 127.0.0.1:40123 -> 80"
		_, after, found := strings.Cut(lines.Text(), "Forwarding from 127.0.0.1:")
		if !found {
			continue
		}
		port, _, _ := strings.Cut(after, " ")
		// crictl listens in the node's network namespace.
		page, err := exec.CommandContext(ctx, "nsenter", "--net="+p.n.Namespace(),
			"curl", "--silent", "--show-error", "--max-time", "60", "http://127.0.0.1:"+port+"/").CombinedOutput()
		if err != nil || len(page) == 0 {
			t.Errorf("the page through port-forward is %q, %v", page, err)
		}
		return
	}
	t.Errorf("crictl port-forward ended without forwarding: %v", lines.Err())
}
