//go:build e2e

package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ambipod/ambipod/tests/cluster"
	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
)

// patience is how long a rollout of the DaemonSet may take.
const patience = "--timeout=180s"

// startTime is for the image and two nodes.
const startTime = 2 * testTime

// What these tests have in common with those of the packages beside.
const testTime = fixture.TestTime

var deadline, eventually = fixture.Deadline, fixture.Eventually

// shared is the package's cluster, and second its second node. Each node has a root
// directory of its own with criproxy, and neither libvirtd nor vmruntime.
var (
	shared *cluster.Cluster
	second *node.Node
)

// overlay is the folder to apply.
var overlay string

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	err := start(ctx)
	code := 1
	if err == nil {
		code = m.Run()
	}
	if second != nil {
		err = errors.Join(err, fixture.TakeDown(second, "install-second", code != 0))
	}
	if shared != nil {
		err = errors.Join(err, fixture.TakeDown(shared.Node(), "install", code != 0))
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
	// As make images does, but without new programs: other packages use those that are there.
	build := exec.CommandContext(ctx, filepath.Join(top, "images/node/build.sh"), filepath.Join(top, "_tools/images/packages.tar.gz"), archive)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the image of the daemons, which takes hack/setup.sh test: %w: %s", err, out)
	}
	config := node.Config{
		Checkout: top, Name: fmt.Sprintf("e2e%d-install", os.Getpid()), OwnRoot: true, Without: []string{node.Libvirtd, node.VMRuntime},
	}
	if shared, err = cluster.Start(ctx, config); err != nil {
		return err
	}
	config.Name += "-second"
	if second, err = shared.AddNode(ctx, config); err != nil {
		return err
	}
	overlay, err = shared.PrepareInstall(ctx, archive, shared.Node(), second)
	return err
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
	return said(t, "apply", "-f", fixture.Manifest(t, manifest))
}
