//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// failing runs a command that must end with an error, and returns what it
// complained about.
func failing(t *testing.T, argv ...string) string {
	t.Helper()
	var complaint bytes.Buffer
	cmd := exec.CommandContext(deadline(t), argv[0], argv[1:]...)
	cmd.Stderr = &complaint
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Fatalf("%q ended with %v, want a non-zero exit status: %s", argv, err, complaint.String())
	}
	return complaint.String()
}

// lastLine is what a person looks at after a program has ended.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func TestSocketInUse(t *testing.T) {
	n := criNode(t)
	for daemon, socket := range map[string]string{node.VMRuntime: n.VMRuntimeSocket(), node.CRIProxy: n.CRIProxySocket()} {
		t.Run(daemon, func(t *testing.T) {
			argv, err := n.Command(daemon)
			if err != nil {
				t.Fatal(err)
			}
			complaint := lastLine(failing(t, argv...))
			if !strings.Contains(complaint, "another process") {
				t.Errorf("a second %s says %q, want that another process has its socket or database", daemon, complaint)
			}
			if err := node.RuntimeReady(deadline(t), socket); err != nil {
				t.Errorf("the first %s after the second: %v", daemon, err)
			}
		})
	}
}

func TestMissingRootRights(t *testing.T) {
	n := criNode(t)
	for _, daemon := range []string{node.VMRuntime} {
		t.Run(daemon, func(t *testing.T) {
			argv, err := n.Command(daemon)
			if err != nil {
				t.Fatal(err)
			}
			// What comes before the program enters the node's namespace as root.
			at := programAt(t, argv, daemon)
			program := copyForEverybody(t, argv[at])
			complaint := lastLine(failing(t, append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program}, argv[at+1:]...)...))
			if !strings.Contains(complaint, "root") {
				t.Errorf("%s without root rights says %q", daemon, complaint)
			}
		})
	}
}

func programAt(t *testing.T, argv []string, name string) int {
	t.Helper()
	for i, arg := range argv {
		if filepath.Base(arg) == name {
			return i
		}
	}
	t.Fatalf("no program %s in %q", name, argv)
	return 0
}

// copyForEverybody makes a program one that any user may run.
func copyForEverybody(t *testing.T, program string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ambipod-e2e") //nolint:usetesting // others may not enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(dir, filepath.Base(program))
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.Chmod(0o755), out.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDemo runs what `make demo` runs.
func TestDemo(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(top, "_build", "bin", "node")
	out, err := exec.CommandContext(deadline(t), program, "demo", "--checkout", top).CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{"NAME", "web-container-demo", "web-vm-demo", node.ContainerImage, node.VMImage, "MiB", "login:", "nothing is left"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}

func TestDemoNeedsRoot(t *testing.T) {
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	program := copyForEverybody(t, filepath.Join(top, "_build", "bin", "node"))
	complaint := failing(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "demo", "--checkout", "/")
	if !strings.Contains(lastLine(complaint), "run as root") {
		t.Errorf("the demo without root rights says %q", complaint)
	}
}
