package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
	"github.com/ambipod/ambipod/tests/node"
)

// localName begins the names of images that are files of the node.
const localName = "local"

// imageRig is a node's vmruntime, and a web server that it reaches by loopback.
type imageRig struct {
	node   *node.Node
	conn   *grpc.ClientConn // to vmruntime
	images runtimeapi.ImageServiceClient
	dir    string // its files are on the server, and copies of them come here
	host   string // of the server
	asked  atomic.Int64
	server *http.Server
	served chan error
}

// startImageRig runs vmruntime without kubelet, containerd and criproxy. stateBytes, if
// not 0, puts its state into memory.
func startImageRig(ctx context.Context, e environment, name string, stateBytes int64) (_ *imageRig, err error) {
	r := &imageRig{served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop(ctx))
		}
	}()
	if r.dir, err = os.MkdirTemp("/var/tmp", "ambipod-bench-"); err != nil {
		return nil, fmt.Errorf("make folder for images: %w", err)
	}
	translations, err := r.translate()
	if err != nil {
		return nil, err
	}
	r.node, err = node.Start(ctx, node.Config{
		Checkout: e.checkout, Name: name, StateBytes: stateBytes,
		Without: []string{node.ImageSite, node.Registry, node.Containerd, node.CRIProxy, node.Kubelet},
		Args:    map[string][]string{node.VMRuntime: {"--image-translations-dir", translations, "--image-file-root", r.dir}},
	})
	if err != nil {
		return nil, err
	}
	if r.conn, err = node.Dial(r.node.VMRuntimeSocket()); err != nil {
		return nil, err
	}
	r.images = runtimeapi.NewImageServiceClient(r.conn)
	return r, r.serve(ctx)
}

// translate lets images be named that are files of the rig's folder, and returns the
// folder of the translation.
func (r *imageRig) translate() (string, error) {
	folder := r.file("translations")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return "", fmt.Errorf("make folder for translations: %w", err)
	}
	rule := fmt.Sprintf("translations: [{regexp: '^%s/(.*)$', url: 'file://%s/$1'}]\n", localName, r.dir)
	if err := os.WriteFile(filepath.Join(folder, "bench.yaml"), []byte(rule), 0o600); err != nil {
		return "", fmt.Errorf("write translation: %w", err)
	}
	return folder, nil
}

// serve starts the web server in the node's network namespace.
func (r *imageRig) serve(ctx context.Context) error {
	listener, err := listenIn(ctx, r.node.Namespace())
	if err != nil {
		return err
	}
	files := http.FileServer(http.Dir(r.dir))
	pages := http.NewServeMux()
	pages.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		r.asked.Add(1)
		files.ServeHTTP(w, q)
	})
	pages.HandleFunc("/tiny/", func(w http.ResponseWriter, q *http.Request) {
		_, _ = w.Write(imagetest.Raw(q.URL.Path, tinySize)) //nolint:gosec // G705: vmruntime is no browser
	})
	r.host = listener.Addr().String()
	r.server = &http.Server{Handler: pages, ReadHeaderTimeout: startTime}
	go func() { r.served <- r.server.Serve(listener) }()
	return nil
}

// listenIn listens on the loopback interface of another network namespace.
func listenIn(ctx context.Context, namespace string) (_ net.Listener, err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("find own network namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	there, err := netns.GetFromPath(namespace)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", namespace, err)
	}
	defer func() { _ = there.Close() }()
	if err := netns.Set(there); err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", namespace, err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if back := netns.Set(home); back != nil {
		return nil, errors.Join(err, fmt.Errorf("leave network namespace %s: %w", namespace, back)) // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return listener, err
}

func (r *imageRig) stop(ctx context.Context) error {
	var errs []error
	if r.server != nil {
		errs = append(errs, r.server.Close())
		if err := <-r.served; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	}
	if r.conn != nil {
		errs = append(errs, r.conn.Close())
	}
	if r.node != nil {
		errs = append(errs, stopNode(ctx, r.node))
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// file is the path of a file that the server has.
func (r *imageRig) file(name string) string { return filepath.Join(r.dir, name) }

func (r *imageRig) url(name string) string { return "http://" + r.host + "/" + name }

// spec names a file of the server as an image.
func (r *imageRig) spec(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: imagestore.Prefix + "http/" + r.host + "/" + name}
}

// local names a file of the rig's folder, without the web server.
func (r *imageRig) local(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: imagestore.Prefix + localName + "/" + name}
}

func (r *imageRig) pull(ctx context.Context, image *runtimeapi.ImageSpec) error {
	if _, err := r.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image}); err != nil {
		return fmt.Errorf("pull %s: %w", image.GetImage(), err)
	}
	return nil
}

// pullFresh pulls an image that is not there, so many times at once, and removes it again.
func (r *imageRig) pullFresh(ctx context.Context, image *runtimeapi.ImageSpec, pulls int) (time.Duration, error) {
	took, err := timed(func() error {
		var group errgroup.Group
		for range pulls {
			group.Go(func() error { return r.pull(ctx, image) })
		}
		return group.Wait()
	})
	if err != nil {
		return 0, err
	}
	if _, err := r.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
		return 0, fmt.Errorf("remove %s: %w", image.GetImage(), err)
	}
	return took, nil
}

// timedCopy runs a script that makes a copy, and removes that. The script's arguments
// are the URL and the path of a file and the path of the copy.
func (r *imageRig) timedCopy(ctx context.Context, script, name string) (time.Duration, error) {
	target := r.file("copy")
	took, err := timed(func() error { return r.shell(ctx, script, r.url(name), r.file(name), target) })
	if err != nil {
		return 0, err
	}
	return took, os.Remove(target)
}

// shell runs a script in the node's network namespace.
func (r *imageRig) shell(ctx context.Context, script string, args ...string) error {
	all := append([]string{"--net=" + r.node.Namespace(), "bash", "-euo", "pipefail", "-c", script, "bash"}, args...)
	if out, err := exec.CommandContext(ctx, "nsenter", all...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", script, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// turns lets all sides do their work by turns, each of them first as often as the others.
func turns(n int, sides ...func() (time.Duration, error)) ([][]time.Duration, error) {
	all := make([][]time.Duration, len(sides))
	for round := range n {
		for place := range sides {
			i := turn(round, place, len(sides))
			took, err := sides[i]()
			if err != nil {
				return all, err
			}
			all[i] = append(all[i], took)
		}
	}
	return all, nil
}
