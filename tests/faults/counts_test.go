//go:build faults

package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/ambipod/ambipod/pkg/statushttp"
	"github.com/ambipod/ambipod/tests/node"
)

// counts are numbers of what a node has, by what it is.
type counts map[string]int

// sameAs ignores what only one of the two has counted.
func (c counts) sameAs(other counts) bool {
	for what, n := range c {
		if was, counted := other[what]; counted && was != n {
			return false
		}
	}
	return true
}

// standStill is satisfied when the counts are the same several times in a row.
func standStill() func(counts) bool {
	const enough = 3
	var last counts
	times := 0
	return func(now counts) bool {
		if maps.Equal(now, last) {
			times++
		} else {
			last, times = maps.Clone(now), 1
		}
		return times == enough
	}
}

// countUntil counts once a second until the counts are good or the context ends.
func (r *rig) countUntil(ctx context.Context, good func(counts) bool) (counts, error) {
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		now, err := r.count(context.WithoutCancel(ctx))
		if err != nil || good(now) {
			return now, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return now, nil
		}
	}
}

// count counts all but what is in databases.
func (r *rig) count(ctx context.Context) (counts, error) {
	c := counts{}
	lines, err := r.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		kind, _, _ := strings.Cut(line, ": ")
		c[kind]++
	}
	for _, daemon := range []string{node.VMRuntime, node.CRIProxy, node.Libvirtd, node.Virtlogd} {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.n.Process(daemon).PID))
		if err != nil {
			return nil, err
		}
		c["file descriptors of "+daemon] = len(open)
	}
	for daemon, socket := range map[string]string{node.VMRuntime: r.n.VMRuntimeStatus(), node.CRIProxy: r.n.CRIProxyStatus()} {
		page, err := statushttp.NewClient("unix:"+socket).Get(ctx, statushttp.PathGoroutines)
		if err != nil {
			return nil, err
		}
		c["goroutines of "+daemon] = bytes.Count(page, []byte("\n\n")) + 1
	}
	return c, r.countInterfaces(ctx, c)
}

// countInterfaces counts what is in the namespaces of VM pods: taps and their like.
func (r *rig) countInterfaces(ctx context.Context, c counts) error {
	namespaces, err := os.ReadDir(filepath.Join(r.n.VMRunDir(), "netns"))
	if err != nil {
		return err
	}
	for _, ns := range namespaces {
		file := filepath.Join(r.n.VMRunDir(), "netns", ns.Name())
		out, err := exec.CommandContext(ctx, "nsenter", "--net="+file, "ip", "-oneline", "link", "show").Output()
		if err != nil {
			return fmt.Errorf("interfaces of %s: %w", file, err)
		}
		c["network namespaces of VM pods"]++
		c["interfaces in them, taps too"] += bytes.Count(out, []byte("\n"))
	}
	return nil
}

// countPages counts the pages in use of the databases, which nobody may have open.
func (r *rig) countPages(c counts) error {
	indexes, err := filepath.Glob(filepath.Join(r.n.VMStateDir(), "images", "*.db"))
	if err != nil {
		return err
	}
	for _, path := range append(indexes, r.database()) {
		db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		err = db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
				stats := bucket.Stats()
				what := fmt.Sprintf("bolt pages of %s in %s", name, filepath.Base(path))
				c[what] = stats.BranchPageN + stats.BranchOverflowN + stats.LeafPageN + stats.LeafOverflowN + stats.InlineBucketN
				c["bolt keys of "+string(name)] = stats.KeyN
				return nil
			})
		})
		if err := errors.Join(err, db.Close()); err != nil {
			return err
		}
	}
	return nil
}
