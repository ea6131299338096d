//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/certificate"
	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/logind"
	"github.com/ambipod/ambipod/tests/node"
)

// What these tests have in common with those of the packages below.
const testTime, downTime = fixture.TestTime, fixture.DownTime

var deadline, eventually = fixture.Deadline, fixture.Eventually

// nodes are the package's nodes by name. Tests run one after another.
var nodes = map[string]*node.Node{}

// tunedLogind is what the tuned node's kubelet takes for systemd's; tunedDir is a
// folder for what that node uses; tunedPages are the huge pages reserved for it.
var (
	tunedLogind *logind.Logind
	tunedDir    string
	tunedPages  int
)

func TestMain(m *testing.M) {
	code := m.Run()
	for name, n := range nodes {
		if err := fixture.TakeDown(n, name, code != 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if err := cleanTuned(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// kubeletNode is the complete node.
func kubeletNode(t *testing.T) *node.Node {
	t.Helper()
	return sharedNode(t, "kubelet")
}

// criNode has no kubelet: tests talk to criproxy.
func criNode(t *testing.T) *node.Node {
	t.Helper()
	return sharedNode(t, "cri", node.Kubelet)
}

// tunedNode is a complete node whose kubelet has statistics from the CRI alone,
// rotates logs when they are small, reaches VMs' streams by TLS, has huge pages to give
// away, and is told when the machine shuts down.
func tunedNode(t *testing.T) *node.Node {
	t.Helper()
	if n, ok := nodes["tuned"]; ok {
		return n
	}
	var err error
	tunedDir, err = os.MkdirTemp("/var/tmp", "ambipod-e2e") //nolint:usetesting // the node outlives the test
	must(t, err)
	files, err := certificate.Write(tunedDir)
	must(t, err)
	tunedLogind, err = logind.Start(deadline(t), tunedDir)
	must(t, err)
	must(t, addHugePages(hugePages))
	tunedPages = hugePages
	config := nodeConfig(t, "tuned")
	config.Args = map[string][]string{node.VMRuntime: {"--stream-tls-cert", files.Cert, "--stream-tls-key", files.Key}}
	config.Env = map[string][]string{node.Kubelet: {"SSL_CERT_FILE=" + files.Cert, "DBUS_SYSTEM_BUS_ADDRESS=" + tunedLogind.Address()}}
	config.Kubelet = map[string]any{
		"featureGates":                map[string]bool{"PodAndContainerStatsFromCRI": true},
		"containerLogMaxSize":         "32Ki",
		"containerLogMaxFiles":        1000,
		"containerLogMonitorInterval": "3s",
		"shutdownGracePeriodByPodPriority": []map[string]int{
			{"priority": 0, "shutdownGracePeriodSeconds": 60}, {"priority": 2_000_000_000, "shutdownGracePeriodSeconds": 60},
		},
	}
	return startShared(t, "tuned", config)
}

func cleanTuned() error {
	var err error
	if tunedLogind != nil {
		err = tunedLogind.Close()
	}
	if tunedPages > 0 {
		err = errors.Join(err, addHugePages(-tunedPages))
	}
	return errors.Join(err, os.RemoveAll(tunedDir))
}

func sharedNode(t *testing.T, name string, without ...string) *node.Node {
	t.Helper()
	return startShared(t, name, nodeConfig(t, name, without...))
}

func startShared(t *testing.T, name string, config node.Config) *node.Node {
	t.Helper()
	if n, ok := nodes[name]; ok {
		return n
	}
	n, err := node.Start(deadline(t), config)
	if err != nil {
		t.Fatal(err)
	}
	nodes[name] = n
	return n
}

// nodeConfig is that of a node which other runs of these tests do not share.
func nodeConfig(t *testing.T, name string, without ...string) node.Config {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return node.Config{Checkout: top, Name: fmt.Sprintf("e2e%d-%s", os.Getpid(), name), Without: without}
}

// nothingLeft waits until no trace of any pod is on the node.
func nothingLeft(t *testing.T, n *node.Node) {
	t.Helper()
	eventually(t, "nothing is left of the pods", func(ctx context.Context) error {
		left, err := n.Leftovers(ctx)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(left, "; "))
		}
		return err
	})
}
