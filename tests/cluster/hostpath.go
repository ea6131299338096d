package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/node"
)

// The controller manager makes the volumes of the storage class hostpath in
// /tmp/hostpath_pv, which is built in. It has a /tmp of its own, in the cluster's
// folder: so volumes go with the node, whatever became of their claims. A policy of
// the API server gives the volumes the names by which everybody finds them, the
// controller manager too.
const (
	hostPathFile = "hostpath.yaml"
	dirTmp       = "tmp" // the manager deletes what has /tmp/ in its name, and nothing else
)

// inOwnTmp runs a program, which may itself be below /tmp, with another /tmp: sh -c
// inOwnTmp NAME FOLDER PROGRAM [ARGUMENT...].
const inOwnTmp = `set -e
tmp=$1 program=$2
shift 2
mkdir -p "$tmp"
touch "$tmp/$0"
mount --bind "$program" "$tmp/$0"
mount --rbind "$tmp" /tmp
exec "/tmp/$0" "$@"`

// withOwnTmp is the command line that runs a program so; its arguments follow.
func (c *Cluster) withOwnTmp(program string) []string {
	return []string{
		"/usr/bin/unshare", "--mount", "--propagation", "private",
		"/bin/sh", "-c", inOwnTmp, filepath.Base(program), c.path(dirTmp), program,
	}
}

// addHostPaths makes the storage class and returns when its volumes get their names.
func (c *Cluster) addHostPaths(ctx context.Context) error {
	if err := c.applyManifest(ctx, hostPathFile, strings.NewReplacer("$FOLDER", c.dir)); err != nil {
		return err
	}
	const made = "made"
	if err := c.write(made, []byte(hostPathVolume)); err != nil {
		return err
	}
	want := c.path(dirTmp) + strings.TrimPrefix(madeIn, "/tmp")
	return node.Until(ctx, "volumes of host paths are named", func(ctx context.Context) error {
		got, err := c.Kubectl(ctx, "create", "--dry-run=server", "-f", c.path(made), "-o", "jsonpath={.spec.hostPath.path}")
		if err == nil && got != want {
			err = fmt.Errorf("volume %s is called %s, not %s: %w", madeIn, got, want, errdefs.ErrUnavailable)
		}
		return err
	})
}

// hostPathVolume is like one that the controller manager makes.
const (
	madeIn         = "/tmp/hostpath_pv/x"
	hostPathVolume = `{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "made"}, "spec": {
"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "hostPath": {"path": "` + madeIn + `"}}}`
)
