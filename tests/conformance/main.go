// Command conformance runs critest against containerd and against the same
// containerd behind criproxy, and compares: a spec that passes on one side only
// is a failure of criproxy.
//
// Nouns. A spec is one of critest's tests. A stand-in is an image or a program
// that takes the place of one that critest names; the node's registry serves it
// under that name, whatever its host.
//
// Traps. One of critest's specs leaves a System V memory segment on the machine;
// run this program in an IPC namespace of its own, as `make conformance` does.
// Specs use the ports 12000 to 12003 of the node's network namespace.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/defaultcgroup"
	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/page"
)

// cleanupTime bounds what is done after an interruption.
const cleanupTime = 2 * time.Minute

// seed orders the specs alike in both runs.
const seed = 20261121

// namedRun is what one run of critest found.
type namedRun struct {
	name  string
	specs []spec
	took  time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	checkout := flag.String("checkout", ".", "top `folder` of the source")
	flag.Parse()
	if err := run(ctx, *checkout, os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "conformance:", err)
		stop()
		os.Exit(1) //nolint:forbidigo,gocritic // this is main; nothing is deferred but stop
	}
}

// run is main with its surroundings handed in.
func run(ctx context.Context, checkout string, out io.Writer) (err error) {
	checkout, err = filepath.Abs(checkout)
	if err != nil {
		return fmt.Errorf("find the checkout: %w", err)
	}
	results := filepath.Join(checkout, "_run", "conformance")
	if err := os.MkdirAll(results, 0o755); err != nil { //nolint:gosec // for people
		return fmt.Errorf("make folder for results: %w", err)
	}
	cgroups, err := defaultcgroup.Take()
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, node.Config{
		Checkout: checkout,
		Name:     "conformance",
		Without:  []string{node.ImageSite, node.Libvirtd, node.VMRuntime, node.Kubelet},
		Progress: func(step string) func(error) {
			_, _ = fmt.Fprintln(out, "==>", step)
			return func(error) {}
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, n.Stop(cleanup), cgroups.RemoveNew())
	}()
	t := target{node: n, checkout: checkout, results: results, out: out}
	if err := t.fillRegistry(ctx); err != nil {
		return err
	}
	return t.compare(ctx)
}

// target is the node under test.
type target struct {
	node     *node.Node
	checkout string
	results  string // folder for logs
	out      io.Writer
}

// fillRegistry makes the node's registry answer for every host and pushes the
// stand-ins into it.
func (t target) fillRegistry(ctx context.Context) error {
	_, _ = fmt.Fprintln(t.out, "==> build and push stand-ins of critest's images")
	work, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		return fmt.Errorf("make working folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	busybox, err := fetchBusybox(ctx, work)
	if err != nil {
		return err
	}
	userland, err := userlandFiles(ctx, busybox)
	if err != nil {
		return err
	}
	standin, err := buildStandin(ctx, t.checkout, work)
	if err != nil {
		return err
	}
	if err := t.node.ServeEveryRegistry(); err != nil {
		return err
	}
	return pushAll(ctx, t.node.RegistryAddress(), userland, images(standin))
}

// compare runs critest on both sides and reports.
func (t target) compare(ctx context.Context) error {
	var runs []namedRun
	for _, side := range []struct{ name, file, socket string }{
		{"containerd", "direct", t.node.ContainerdSocket()},
		{"criproxy, then containerd", "proxy", t.node.CRIProxySocket()},
	} {
		r, err := t.critest(ctx, side.name, side.file, side.socket)
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	rows := compare(runs[0].specs, runs[1].specs)
	if err := t.report(runs, rows); err != nil {
		return err
	}
	if bad := different(rows); len(bad) > 0 {
		return fmt.Errorf("%d specs pass on one side only, see the list above and %s: %w", len(bad), t.results, errdefs.ErrFailedPrecondition)
	}
	if count(runs[0].specs)[passed] == 0 {
		return fmt.Errorf("no spec passes, see %s: %w", t.results, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// critest runs it once, from a node without containers and their images.
func (t target) critest(ctx context.Context, name, file, socket string) (namedRun, error) {
	_, _ = fmt.Fprintln(t.out, "==> run critest against", name)
	if err := removeImages(ctx, t.node.ContainerdSocket()); err != nil {
		return namedRun{}, err
	}
	dir := filepath.Join(t.node.Root(), "critest-"+file)
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // containers of other users look into it
		return namedRun{}, fmt.Errorf("make folder for critest: %w", err)
	}
	started := time.Now()
	specs, err := suite{
		critest:  filepath.Join(t.checkout, "_tools", "bin", "critest"),
		network:  t.node.Namespace(),
		endpoint: socket,
		dir:      dir,
		log:      filepath.Join(t.results, file+".log"),
		seed:     seed,
		progress: t.out,
	}.run(ctx)
	return namedRun{name, specs, time.Since(started)}, err
}

// removeImages removes all images but those that containerd keeps for itself.
func removeImages(ctx context.Context, socket string) error {
	conn, err := node.Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	cri := runtimeapi.NewImageServiceClient(conn)
	list, err := cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images of containerd: %w", err)
	}
	for _, i := range list.GetImages() {
		if i.GetPinned() {
			continue
		}
		_, err := cri.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.GetId()}})
		if err != nil {
			return fmt.Errorf("remove image %s of containerd: %w", i.GetId(), err)
		}
	}
	return nil
}

// report writes the results for machines and for people.
func (t target) report(runs []namedRun, rows []comparison) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(t.results, "specs.json"), append(data, '\n'), 0o644); err != nil { //nolint:gosec // for people
		return fmt.Errorf("write results: %w", err)
	}
	_, _ = io.WriteString(t.out, "\n"+summary(runs)+"\n")
	for _, row := range rows {
		if row.Direct != passed || row.Proxy != passed {
			_, _ = fmt.Fprintf(t.out, "%s: containerd %s, criproxy %s: %s\n", row.Name, row.Direct, row.Proxy, cmp.Or(row.Why, row.DirectWhy))
		}
	}
	heading := "Measured on " + time.Now().UTC().Format(time.DateOnly) + "; the specs run in the same order on both sides."
	return page.Replace(filepath.Join(t.checkout, "docs", "conformance.md"), "written by make conformance", markdown(heading, runs, rows))
}
