//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// TestKubectlGetsIntoAVM uses kubectl's ways into a pod on one VM.
func TestKubectlGetsIntoAVM(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "pod.yaml")
	const pod = "tiny-vm"
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout="+testTime.String())
	eventually(t, "the guest's agent answers", func(ctx context.Context) error {
		_, err := shared.Kubectl(ctx, "--namespace", s.name, "exec", pod, "--", "true")
		return err
	})
	contains := func(t *testing.T, text string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in:\n%s", want, text)
			}
		}
	}
	t.Run("logs", func(t *testing.T) { contains(t, s.kubectl(t, "logs", pod), "login:") })
	t.Run("exec", func(t *testing.T) {
		contains(t, s.kubectl(t, "exec", pod, "--", "uname", "-a"), "Linux "+pod, "cloud-amd64")
	})
	t.Run("describe", func(t *testing.T) {
		contains(t, s.kubectl(t, "describe", "pod", pod), "Runtime Class Name:", "Successfully pulled image", "vm.ambipod.io/tiny")
	})
	t.Run("cp", func(t *testing.T) { s.copies(t, pod) })
	t.Run("port-forward", func(t *testing.T) { s.forwards(t, pod) })
	t.Run("attach", func(t *testing.T) { s.attaches(t, pod) })
	t.Run("top", func(t *testing.T) {
		eventually(t, "metrics-server knows the VM", func(ctx context.Context) error {
			out, err := shared.Kubectl(ctx, "--namespace", s.name, "top", "pod", pod, "--no-headers")
			if err == nil && len(strings.Fields(out)) != 3 {
				err = fmt.Errorf("kubectl top says %q", out)
			}
			return err
		})
		contains(t, kubectl(t, "top", "node"), shared.Node().Name())
	})
}

func (s space) copies(t *testing.T, pod string) {
	from, to := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "back")
	content := strings.Repeat("0123456789abcdef", 1<<14)
	if err := os.WriteFile(from, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "cp", from, pod+":/root/copied")
	s.kubectl(t, "cp", pod+":/root/copied", to)
	if got, err := os.ReadFile(to); err != nil || string(got) != content {
		t.Errorf("%d bytes came back (%v), want the %d that were sent", len(got), err, len(content))
	}
}

func (s space) forwards(t *testing.T, pod string) {
	ctx, cancel := context.WithCancel(deadline(t))
	cmd, err := shared.Command(ctx, "--namespace", s.name, "port-forward", pod, ":80")
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	var port int
	if _, err := fmt.Fscanf(said, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	page, err := node.Fetch(ctx, fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil || !strings.Contains(string(page), pod) {
		t.Errorf("the page through the forwarded port is %q (%v), want %s in it", page, err, pod)
	}
}

// attaches logs in on the serial console, from a terminal that script(1) makes:
// kubectl refuses to do without.
func (s space) attaches(t *testing.T, pod string) {
	ctx, cancel := context.WithTimeout(deadline(t), testTime)
	kubectl, err := shared.Command(ctx, "--namespace", s.name, "attach", "-it", pod)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "script", "--quiet", "--echo", "never", "--command", strings.Join(kubectl.Args, " "), "/dev/null")
	cmd.Env = kubectl.Env
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	screen, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	for _, step := range []struct{ send, see string }{
		{"\r", "login:"}, {"root\r", "Password:"}, {"tiny\r", "# "}, {"echo $((6*7))-seen\r", "42-seen"}, {"exit\r", "login:"},
	} {
		if _, err := keys.Write([]byte(step.send)); err != nil {
			t.Fatal(err)
		}
		seen(t, screen, step.see)
	}
}

// seen reads what a terminal shows until a text is there.
func seen(t *testing.T, screen io.Reader, want string) {
	t.Helper()
	var shown strings.Builder
	buffer := make([]byte, 256)
	for !strings.Contains(shown.String(), want) {
		n, err := screen.Read(buffer)
		shown.Write(buffer[:n])
		if err != nil {
			t.Fatalf("the console shows %q (%v), want %q", shown.String(), err, want)
		}
	}
}
