//go:build e2e

package install

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

// testAccess uses kubectl's ways into a pod, and what it tells about one.
func testAccess(t *testing.T) {
	for _, way := range []struct {
		name string
		test func(*testing.T)
	}{
		{"logs", func(t *testing.T) { contains(t, kubectl(t, "logs", "vm"), "login:") }},
		{"exec", func(t *testing.T) {
			contains(t, kubectl(t, "exec", "vm", "--", "uname", "-a"), "Linux vm", "cloud-amd64")
		}},
		{"describe", func(t *testing.T) {
			contains(t, kubectl(t, "describe", "pod", "vm"), "Runtime Class Name:", "Successfully pulled image", "vm.ambipod.io/tiny")
		}},
		{"cp", copies},
		{"port-forward", forwards},
		{"attach", attaches},
		{"top", tops},
	} {
		t.Run(way.name, way.test)
	}
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func copies(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "back")
	content := strings.Repeat("0123456789abcdef", 1<<14)
	if err := os.WriteFile(from, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "cp", from, "vm:/root/copied")
	kubectl(t, "cp", "vm:/root/copied", to)
	if got, err := os.ReadFile(to); err != nil || string(got) != content {
		t.Errorf("%d bytes came back (%v), want the %d that were sent", len(got), err, len(content))
	}
}

func forwards(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	cmd, err := shared.Command(ctx, "port-forward", "vm", ":80")
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
	if err != nil || !strings.Contains(string(page), "Hello from vm,") {
		t.Errorf("the page through the forwarded port is %q (%v), want the VM's", page, err)
	}
}

// tops reads what metrics-server has collected.
func tops(t *testing.T) {
	eventually(t, "metrics-server knows the VM", func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "top", "pod", "vm", "--no-headers")
		if err == nil && len(strings.Fields(out)) != 3 {
			err = fmt.Errorf("kubectl top says %q", out)
		}
		return err
	})
	contains(t, kubectl(t, "top", "node"), shared.Node().Name())
}

// attaches logs in on the serial console, from a terminal that script(1) makes:
// kubectl refuses to do without.
func attaches(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	kubectl, err := shared.Command(ctx, "attach", "-it", "vm")
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
