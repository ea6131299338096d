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
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
	"github.com/ambipod/ambipod/tests/node"
)

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
	n, err := node.Start(ctx, node.Config{
		Checkout: e.checkout, Name: name, StateBytes: stateBytes,
		Without: []string{node.ImageSite, node.Registry, node.Containerd, node.CRIProxy, node.Kubelet},
	})
	if err != nil {
		return nil, err
	}
	r := &imageRig{node: n, dir: filepath.Join(n.Root(), "bench"), served: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop(ctx))
		}
	}()
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for images: %w", err)
	}
	if r.conn, err = node.Dial(n.VMRuntimeSocket()); err != nil {
		return nil, err
	}
	r.images = runtimeapi.NewImageServiceClient(r.conn)
	return r, r.serve(ctx)
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
	return errors.Join(append(errs, stopNode(ctx, r.node))...)
}

// file is the path of a file that the server has.
func (r *imageRig) file(name string) string { return filepath.Join(r.dir, name) }

func (r *imageRig) url(name string) string { return "http://" + r.host + "/" + name }

// spec names a file of the server as an image.
func (r *imageRig) spec(name string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: imagestore.Prefix + "http/" + r.host + "/" + name}
}

func (r *imageRig) pull(ctx context.Context, name string) error {
	if _, err := r.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: r.spec(name)}); err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	return nil
}

// pullFresh pulls an image that is not there, and removes it again.
func (r *imageRig) pullFresh(ctx context.Context, name string, pull func() error) (time.Duration, error) {
	took, err := timed(pull)
	if err != nil {
		return 0, err
	}
	if _, err := r.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: r.spec(name)}); err != nil {
		return 0, fmt.Errorf("remove %s: %w", name, err)
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

// turns lets both sides do their work by turns, each of them first as often as the other.
func turns(n int, base, ours func() (time.Duration, error)) (pair, error) {
	var p pair
	for i := range n {
		var theirs, mine time.Duration
		var errs [2]error
		if i%2 == 0 {
			theirs, errs[0] = base()
			mine, errs[1] = ours()
		} else {
			mine, errs[1] = ours()
			theirs, errs[0] = base()
		}
		if err := errors.Join(errs[:]...); err != nil {
			return p, err
		}
		p.base, p.ours = append(p.base, theirs), append(p.ours, mine)
	}
	return p, nil
}
