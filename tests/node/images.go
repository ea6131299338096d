package node

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
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
	VMImage = "vm.ambipod.io/http/127.0.0.1/" + guestFile + ":latest"

	guestFile = "tiny.qcow2"
)

// containerImages are the archives in _tools/images that the registry serves.
var containerImages = []string{"pause", "busybox"}

// cacheDir keeps libvirt's knowledge about emulators from one run to the next.
func (n *Node) cacheDir() string {
	return filepath.Join(n.cfg.Checkout, "_tools", "cache", "libvirt-"+n.id)
}

func (n *Node) pushImages(ctx context.Context) error {
	for _, name := range containerImages {
		target := n.net.nodeIP().String() + ":" + registryPort + "/" + name + ":latest"
		cmd := exec.CommandContext(ctx, n.tool("crane"), "push", "--insecure", n.image(name+".tar"), target)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("push image %s to the node's registry: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
