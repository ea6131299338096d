//go:build e2e

package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambipod/ambipod/tests/cluster"
	"github.com/ambipod/ambipod/tests/node"
)

// Deadlines: many times what is usual, for machines that are busy.
const (
	testTime = 6 * time.Minute
	downTime = 2 * time.Minute
	patience = "--timeout=180s"
)

// shared is the package's cluster, whose node has neither libvirtd nor vmruntime.
var shared *cluster.Cluster

// overlay is the folder to apply.
var overlay string

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	defer cancel()
	err := start(ctx)
	code := 1
	if err == nil {
		code = m.Run()
	}
	if shared != nil {
		err = errors.Join(err, takeDown(shared.Node(), code != 0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func start(ctx context.Context) error {
	top, err := filepath.Abs("../../..")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "ambipod-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "node.tar")
	build := exec.CommandContext(ctx, filepath.Join(top, "images/node/build.sh"), filepath.Join(top, "_tools/images/packages.tar.gz"), archive)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the image of the daemons, which takes hack/setup.sh test: %w: %s", err, out)
	}
	shared, err = cluster.Start(ctx, node.Config{
		Checkout: top, Name: fmt.Sprintf("e2e%d-install", os.Getpid()), Without: []string{node.Libvirtd, node.VMRuntime},
	})
	if err != nil {
		return err
	}
	overlay, err = shared.PrepareInstall(ctx, archive)
	return err
}

func takeDown(n *node.Node, keepLogs bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	if keepLogs {
		dir := filepath.Join(n.Checkout(), "_run", "e2e-logs", n.Name())
		if err := n.SaveLogs(dir); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "the daemons' logs are kept in %s\n", dir)
	}
	if err := n.Stop(ctx); err != nil {
		return err
	}
	remains, err := n.Remains()
	if err == nil && len(remains) > 0 {
		err = fmt.Errorf("left of node %s: %s", n.Name(), strings.Join(remains, "; "))
	}
	return err
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	if err := node.Until(deadline(t), what, check); err != nil {
		t.Fatal(err)
	}
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := shared.Kubectl(deadline(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// said runs kubectl and returns all that it printed, warnings too, and whether it
// succeeded.
func said(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd, err := shared.Command(deadline(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// apply applies a manifest, which may be refused.
func apply(t *testing.T, manifest string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return said(t, "apply", "-f", file)
}
