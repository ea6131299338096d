package cluster

import (
	"context"
	_ "embed" // the overlay
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/ambipod/ambipod/tests/node"
)

// overlay is what an administrator adapts of deploy/base.
//
//go:embed manifests/overlay.yaml
var overlay string

// repository is where the image of Ambipod's daemons is in the nodes' registries.
const repository = "ambipod/node"

// NodeChoice is the label, as kubectl label takes it, of nodes on which Ambipod is to
// run.
const NodeChoice = "example.com/vms=yes"

// PrepareInstall makes all that docs/install.md has an administrator make before
// `kubectl apply -k`: the image of the daemons, which is an OCI archive, is in the
// registries of all nodes, and the overlay, a folder which it returns, names it.
// The nodes must have root directories of their own.
func (c *Cluster) PrepareInstall(ctx context.Context, archive string, nodes ...*node.Node) (string, error) {
	dir, err := os.MkdirTemp(c.dir, "image")
	if err != nil {
		return "", fmt.Errorf("unpack image %s: %w", archive, err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // Node.Stop removes it at last
	crane, err := c.node.Tool("crane")
	if err != nil {
		return "", err
	}
	commands := [][]string{{"tar", "-xf", archive, "-C", dir}}
	for _, n := range nodes {
		commands = append(commands, []string{crane, "push", "--insecure", dir, n.RegistryAddress() + "/" + repository + ":latest"})
	}
	for _, argv := range commands {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("push image %s to the nodes' registries: %w: %s", archive, err, strings.TrimSpace(string(out)))
		}
	}
	return c.path("deploy/private"), c.writeOverlay()
}

// writeOverlay puts the overlay beside a copy of deploy/, because kustomize takes
// relative paths only.
func (c *Cluster) writeOverlay() error {
	if err := os.CopyFS(c.path("deploy"), os.DirFS(filepath.Join(c.node.Checkout(), "deploy"))); err != nil {
		return fmt.Errorf("copy deploy/: %w", err)
	}
	if err := os.MkdirAll(c.path("deploy/private"), 0o700); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	images, err := os.ReadFile(c.node.ImageTranslations())
	if err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	return errors.Join(
		c.write("deploy/private/images.yaml", images),
		c.write("deploy/private/kustomization.yaml", []byte(strings.ReplaceAll(overlay, "$REPOSITORY", path.Dir(node.ContainerImage)+"/"+repository))),
	)
}
