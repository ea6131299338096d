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

	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/tests/node"
)

// overlay puts what deploy/base installs into the node's own folders.
//
//go:embed manifests/overlay.yaml
var overlay string

// repository is where the image of Ambipod's daemons is in the node's registry.
const repository = "ambipod/node"

// PrepareInstall makes all that docs/install.md has an administrator make before
// `kubectl apply -k`: the image of the daemons, which is an OCI archive, is in a
// registry, and the overlay, a folder which it returns, names it and the node's own
// folders. The node must have been started without libvirtd and vmruntime.
func (c *Cluster) PrepareInstall(ctx context.Context, archive string) (string, error) {
	if err := c.mountHost(); err != nil {
		return "", err
	}
	if err := c.pushArchive(ctx, archive); err != nil {
		return "", err
	}
	return c.path("deploy/private"), c.writeOverlay()
}

// HostDir is what Ambipod's containers see as the root directory of their node.
func (c *Cluster) HostDir() string { return filepath.Join(c.node.Root(), "host") }

// mountHost makes the folders that the containers share with their node: on a machine
// with systemd all are shared. HostDir has the machine's programs, which nobody can
// write there, and the node's own files at their places.
func (c *Cluster) mountHost() error {
	if err := os.MkdirAll(c.HostDir(), 0o711); err != nil { //nolint:gosec // QEMU's user passes through
		return fmt.Errorf("make root directory for containers: %w", err)
	}
	for _, dir := range []string{c.node.VMRunDir(), c.node.VMStateDir(), c.HostDir()} {
		if err := c.node.Share(dir); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(c.HostDir(), link)); err != nil {
			return fmt.Errorf("make root directory for containers: %w", err)
		}
	}
	leases := filepath.Join(c.node.Root(), "leases")
	for dir, flags := range map[string]uintptr{
		"/usr": unix.MS_RDONLY, "/proc": 0, c.node.VMRunDir(): 0, c.node.KubeletDir(): 0, leases: 0,
	} {
		if err := bind(dir, filepath.Join(c.HostDir(), dir), flags); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string, flags uintptr) error {
	err := os.MkdirAll(to, 0o711) //nolint:gosec // as above
	if err == nil {
		err = unix.Mount(from, to, "", unix.MS_BIND, "")
	}
	if err == nil && flags != 0 {
		err = unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	if err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// pushArchive puts the image into the node's registry.
func (c *Cluster) pushArchive(ctx context.Context, archive string) error {
	crane, err := c.node.Tool("crane")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.dir, "image")
	if err != nil {
		return fmt.Errorf("unpack image %s: %w", archive, err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // Node.Stop removes it at last
	target := c.node.RegistryAddress() + "/" + repository + ":latest"
	for _, argv := range [][]string{{"tar", "-xf", archive, "-C", dir}, {crane, "push", "--insecure", dir, target}} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("push image %s to the node's registry: %w: %s", archive, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
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
	fill := strings.NewReplacer("$ROOT", c.node.Root(), "$CGROUP", c.node.Cgroup(),
		"$REPOSITORY", path.Dir(node.ContainerImage)+"/"+repository)
	return errors.Join(
		c.write("deploy/private/images.yaml", images),
		c.write("deploy/private/kustomization.yaml", []byte(fill.Replace(overlay))),
	)
}
