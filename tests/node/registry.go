package node

import (
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"
)

// RegistryAddress is the host and port where the node's registry answers, from
// the machine as well.
func (n *Node) RegistryAddress() string { return n.net.nodeIP().String() + ":" + registryPort }

// ServeEveryRegistry makes containerd look for the images of every registry in
// the node's own, under the same repository names. It works from the next pull
// on and lasts as long as the node.
func (n *Node) ServeEveryRegistry() error {
	hosts, err := toml.Marshal(registryHosts())
	if err != nil {
		return fmt.Errorf("write registries of containerd: %w", err)
	}
	// containerd's name for hosts that have no folder of their own.
	const folder = "registries/_default"
	if err := os.MkdirAll(n.path(dirEtc, folder), 0o700); err != nil {
		return fmt.Errorf("write registries of containerd: %w", err)
	}
	return n.writeSetting(folder+"/hosts.toml", hosts)
}
