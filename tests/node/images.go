package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Names of the images that a node can pull.
const (
	// registryHost is invented; containerd is told where it is.
	registryHost = "registry.ambipod.test"
	pauseImage   = registryHost + "/pause:latest"

	// ContainerImage is a busybox.
	ContainerImage = registryHost + "/busybox:latest"
	// VMImage is the tiny guest. References have no room for a port, so it is
	// served on port 80 of the namespace's loopback.
	VMImage = guestPrefix + guestFile + ":latest"

	guestPrefix = "vm.ambipod.io/http/127.0.0.1/"
	guestFile   = "tiny.qcow2"
)

// ServeGuest makes a guest image of _tools/images one that the node can pull, and
// returns the name that pods call it by.
func (n *Node) ServeGuest(file string) (string, error) {
	if _, err := os.Stat(n.image(file)); err != nil {
		return "", fmt.Errorf("%s is missing, run hack/setup.sh test: %w", n.image(file), errdefs.ErrFailedPrecondition)
	}
	return guestPrefix + file + ":latest", copyFile(n.image(file), n.path(dirSite, file), 0o644)
}

// TranslateImages gives guest images more short names, by a translation file of that
// name. They hold until the node is stopped.
func (n *Node) TranslateImages(name string, translations []byte) error {
	return n.writeSetting(filepath.Join(dirTranslations, name+".yaml"), translations)
}

// UseNetwork makes a CNI configuration that of the pods which are started from now
// on, until undo is called.
func (n *Node) UseNetwork(conflist []byte) (undo func() error, err error) {
	const name = "cni/00-test.conflist" // runtimes take the first
	return func() error { return os.Remove(n.path(dirEtc, name)) }, n.writeSetting(name, conflist)
}

// containerImages are the archives in _tools/images that the registry serves.
var containerImages = []string{"pause", "busybox"}

// cacheDir keeps libvirt's knowledge about emulators from one run to the next.
func (n *Node) cacheDir() string {
	return filepath.Join(n.cfg.Checkout, "_tools", "cache", "libvirt-"+n.id)
}

func (n *Node) pushImages(ctx context.Context) error {
	for _, name := range containerImages {
		if err := n.PushImage(ctx, name, name); err != nil {
			return err
		}
	}
	return nil
}

// PushImage puts the archive NAME.tar of _tools/images into the node's registry
// under the name of a repository.
func (n *Node) PushImage(ctx context.Context, name, repository string) error {
	target := n.RegistryAddress() + "/" + repository + ":latest"
	cmd := exec.CommandContext(ctx, n.tool("crane"), "push", "--insecure", n.image(name+".tar"), target)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("push image %s to the node's registry: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
