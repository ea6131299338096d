//go:build e2e

package cluster

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// commands are what docs/quickstart.md tells the reader to type once there is a
// cluster.
var commands = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// TestQuickstart types what docs/quickstart.md says, in one shell, and some words
// into the SSH session. It is in the node's namespace, whose ports nobody else uses.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	text, err := os.ReadFile(filepath.Join(shared.Node().Checkout(), "docs", "quickstart.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range commands.FindAllSubmatch(text, -1) {
		script.Write(block[1])
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(examplePath("x")), filepath.Join(dir, "examples")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "script")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// A shell that fails must not leave what it runs in the background, which would keep
	// its output open.
	cmd := exec.CommandContext(deadline(t), "nsenter", "--net="+shared.Node().Namespace(),
		"bash", "-euxo", "pipefail", "-c", `trap 'kill $(jobs -p) || :' EXIT; . "$0"`, file)
	cmd.Dir = dir
	cmd.Env = s.shellEnv(t, dir)
	cmd.Stdin = strings.NewReader("echo logged in to $(hostname)\nexit\n")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	for _, want := range []string{"pod/my-vm condition met", "tiny: boot done", "Linux my-vm", "logged in to my-vm", "Hello from shop-", `pod "my-vm" deleted`} {
		if err != nil || !strings.Contains(said.String(), want) {
			t.Fatalf("%v, or %q is not in:\n%s", err, want, said.String())
		}
	}
	s.podsLeft(t, "", 0)
}

// shellEnv is a user's environment: kubectl on the path, and the test's namespace
// as the current one.
func (s space) shellEnv(t *testing.T, dir string) []string {
	t.Helper()
	kubectl, err := shared.Command(deadline(t), "config", "set-context", "--current", "--namespace="+s.name)
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(shared.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(own, config, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl.Env = append(kubectl.Env, "KUBECONFIG="+own, "PATH="+filepath.Dir(kubectl.Path)+":"+os.Getenv("PATH"))
	if out, err := kubectl.CombinedOutput(); err != nil {
		t.Fatalf("choose a namespace: %v: %s", err, out)
	}
	return kubectl.Env
}
