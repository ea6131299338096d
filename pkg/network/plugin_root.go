package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	securejoin "github.com/cyphar/filepath-securejoin"
)

// findPlugin looks for a plugin's program in folders of the node, whose root directory
// this process finds at root ("" if it is its own). The path is the node's.
func findPlugin(root, plugin string, dirs []string) (string, error) {
	if root == "" {
		return invoke.FindInPath(plugin, dirs)
	}
	if plugin == "" || filepath.Base(plugin) != plugin {
		return "", fmt.Errorf("CNI plugin %q is no name of a program: %w", plugin, errdefs.ErrInvalidArgument)
	}
	for _, dir := range dirs {
		// A link leads where it leads on the node.
		path, err := securejoin.SecureJoin(root, filepath.Join(dir, plugin))
		if err != nil {
			return "", fmt.Errorf("look for CNI plugin %s in %s: %w", plugin, dir, err)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return strings.TrimPrefix(path, filepath.Clean(root)), nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s is not in %s: %w", plugin, strings.Join(dirs, ", "), errdefs.ErrNotFound)
}
