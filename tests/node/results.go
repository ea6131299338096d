package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// resultsDir is where the CNI library of containerd keeps what plugins have answered,
// which cannot be set. The file of a pod goes with the pod's network, unless containerd
// is killed before.
const resultsDir = "/var/lib/cni/results"

// results lists the files there of this node's pods.
func (n *Node) results() ([]string, error) {
	entries, err := os.ReadDir(resultsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list results of CNI plugins: %w", err)
	}
	var found []string
	for _, entry := range entries {
		name := filepath.Join(resultsDir, entry.Name())
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look at result of CNI plugin: %w", err)
		}
		// The pod's network namespace is one of the node's files.
		if bytes.Contains(text, []byte(`"netns":"`+n.root+`/`)) {
			found = append(found, name)
		}
	}
	return found, nil
}

func (n *Node) removeResults() error {
	files, err := n.results()
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}
