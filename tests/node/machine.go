package node

import (
	"context"
	_ "embed" // machine.sh
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/layout"
)

//go:embed machine.sh
var machineScript []byte

// podLogs is where kubelet has logs of pods written unless it is told otherwise.
const podLogs = "/var/log/pods"

// asleep is what holds the root directory.
const asleep = "/usr/bin/sleep infinity"

// machineCommand runs machine.sh with the node's files at the places where deploy/base
// expects those of its node.
func (n *Node) machineCommand() []string {
	command := []string{
		"/usr/bin/unshare", "--mount", "--propagation", "private",
		"/bin/sh", n.path(dirEtc, "machine.sh"), n.path(dirMachine), n.Cgroup(),
	}
	for _, f := range []struct{ folder, place string }{
		{n.cfg.Checkout, n.cfg.Checkout}, // may be on a disk of its own
		{n.root, n.root},
		{n.VMRunDir(), layout.DefaultRun},
		{n.VMStateDir(), layout.DefaultState},
		{n.PodLogDir(), podLogs},
		{filepath.Dir(n.CNIConfig()), "/etc/cni/net.d"},
		{pluginsDir, "/opt/cni/bin"},
	} {
		command = append(command, f.folder+"="+f.place)
	}
	return append(append(command, "--"), strings.Fields(asleep)...)
}

// machineIsMade returns nil once machine.sh has given way to what it runs.
func (n *Node) machineIsMade(context.Context) error {
	if now := commandLine(n.Process(Machine).PID); now != asleep {
		return fmt.Errorf("root directory of node %q is not made yet, %s is at work: %w", n.cfg.Name, now, errdefs.ErrUnavailable)
	}
	return nil
}

// enterRoot is the command that runs what follows it in the node's network, and with
// its root directory if it has one of its own.
func (n *Node) enterRoot() []string {
	if !n.cfg.OwnRoot {
		return n.enter()
	}
	return append(n.enter(), "--mount=/proc/"+strconv.Itoa(n.Process(Machine).PID)+"/ns/mnt")
}

// RootDir is where others find the node's root directory while the node runs: the
// machine's, unless it has one of its own.
func (n *Node) RootDir() string {
	if !n.cfg.OwnRoot {
		return "/"
	}
	return "/proc/" + strconv.Itoa(n.Process(Machine).PID) + "/root"
}
