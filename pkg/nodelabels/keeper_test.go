package nodelabels

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bench is a Keeper of node n1 before an API server that has one node, with a runtime that says
// what the test wants.
type bench struct {
	keeper *Keeper
	nodes  oneNode
	log    *logbook

	mu    sync.Mutex
	accel string
	err   error
}

// logbook keeps what was logged.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// oneNode is the API of a cluster of one node.
type oneNode struct {
	mu   *sync.Mutex
	node *corev1.Node
}

func (o oneNode) Get(ctx context.Context, name string) (*corev1.Node, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if name != o.node.Name {
		return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.node.DeepCopy(), nil
}

func (o oneNode) Merge(ctx context.Context, _ string, patch []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var change struct {
		Metadata struct {
			Labels map[string]*string `json:"labels"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, value := range change.Metadata.Labels {
		if value == nil {
			delete(o.node.Labels, name)
		} else {
			o.node.Labels[name] = *value
		}
	}
	return nil
}

func newBench(handlers ...string) *bench {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}}}
	for _, name := range handlers {
		node.Status.RuntimeHandlers = append(node.Status.RuntimeHandlers, corev1.NodeRuntimeHandler{Name: name})
	}
	b := &bench{nodes: oneNode{&sync.Mutex{}, node}, accel: "tcg", log: &logbook{}}
	b.keeper = &Keeper{
		Node: "n1", Nodes: b.nodes, Every: time.Second, Patience: 30 * time.Second,
		Accel: func(context.Context) (string, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.accel, b.err
		},
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	return b
}

func (b *bench) say(accel string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accel, b.err = accel, err
}

func (b *bench) labels(t *testing.T) map[string]string {
	t.Helper()
	node, err := b.nodes.Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	return node.Labels
}

func (b *bench) expect(t *testing.T, want map[string]string) {
	t.Helper()
	want = maps.Clone(want)
	want["zone"] = "a" // somebody else's
	if got := b.labels(t); !maps.Equal(got, want) {
		t.Fatalf("labels are %v, want %v\n%s", got, want, b.log.String())
	}
}

var (
	emulating = map[string]string{Capable: "true", Accel: "tcg", Virtlet: "virtlet"}
	kvm       = map[string]string{Capable: "true", Accel: "kvm", Virtlet: "virtlet"}
	none      = map[string]string{}
)

// run lets the Keeper work while during checks, in a bubble where time is cheap, and
// returns what Run returned.
func (b *bench) run(t *testing.T, during func()) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.keeper.Run(ctx) }()
	synctest.Wait()
	during()
	cancel()
	return <-done
}

func TestLabelsFollowTheRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench("", "vm")
		err := b.run(t, func() {
			b.expect(t, emulating)
			b.say("kvm", nil)
			time.Sleep(1500 * time.Millisecond)
			b.expect(t, kvm)

			b.say("", errors.New("libvirtd is away"))
			time.Sleep(29 * time.Second)
			b.expect(t, kvm) // a restart is no news
			time.Sleep(3 * time.Second)
			b.expect(t, none)
			if !strings.Contains(b.log.String(), "libvirtd is away") {
				t.Errorf("the log does not say why:\n%s", b.log.String())
			}

			b.say("kvm", nil)
			time.Sleep(1500 * time.Millisecond)
			b.expect(t, kvm)
		})
		if err != nil {
			t.Fatal(err)
		}
		b.expect(t, none)
	})
}

// A vmruntime that hangs uses up the time that it is given, not that of the API.
func TestLabelsGoWhileTheRuntimeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench("vm")
		answers := b.keeper.Accel
		hung := atomic.Bool{}
		b.keeper.Accel = func(ctx context.Context) (string, error) {
			if hung.Load() {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return answers(ctx)
		}
		err := b.run(t, func() {
			b.expect(t, emulating)
			hung.Store(true)
			time.Sleep(33 * time.Second)
			b.expect(t, none)
			hung.Store(false)
			time.Sleep(3 * time.Second)
			b.expect(t, emulating)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestNodeWithoutCriproxyIsNotCapable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench("", "runc")
		if err := b.run(t, func() { b.expect(t, none) }); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.log.String(), "containerRuntimeEndpoint") {
			t.Errorf("the log does not say what to do:\n%s", b.log.String())
		}
	})
}

func TestRemovedLabelComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench("vm")
		err := b.run(t, func() {
			patch := []byte(`{"metadata":{"labels":{"vm.ambipod.io/capable":null,"vm.ambipod.io/accel":"warp"}}}`)
			if err := b.nodes.Merge(t.Context(), "n1", patch); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1500 * time.Millisecond)
			b.expect(t, emulating)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A node that nobody can reach keeps what it has, and the log has one line about it,
// not one for each look.
func TestUnreachableAPIIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench("vm")
		b.keeper.Node = "n2"
		err := b.run(t, func() { time.Sleep(time.Minute) })
		if err == nil {
			t.Error("labels of a node that does not exist were removed")
		}
		if n := strings.Count(b.log.String(), "\n"); n != 1 {
			t.Errorf("%d lines in a minute:\n%s", n, b.log.String())
		}
	})
}
