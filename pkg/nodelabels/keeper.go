package nodelabels

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
)

// callTimeout bounds the calls of Kubernetes' API in one look.
const callTimeout = 10 * time.Second

// farewellTimeout bounds the last change, made when the Keeper is told to end.
const farewellTimeout = 10 * time.Second

// Nodes are the two calls of Kubernetes' API that a Keeper makes.
type Nodes interface {
	Get(ctx context.Context, name string) (*corev1.Node, error)
	// Merge changes a node by a JSON merge patch (RFC 7386).
	Merge(ctx context.Context, name string, patch []byte) error
}

// Keeper keeps the labels of one node true.
type Keeper struct {
	Node  string // its name
	Nodes Nodes
	// Accel asks vmruntime by which accelerator VMs run here, "kvm" or "tcg". An
	// error says why none can run.
	Accel func(context.Context) (string, error)
	Every time.Duration // between two looks
	// Patience is how long a node keeps its labels after Accel began to fail, so
	// that a restart of vmruntime is no news.
	Patience time.Duration
	Logger   *slog.Logger

	accel string    // what Accel said last
	ready time.Time // when it last said so
	told  string    // last line of the log
}

// Run looks and labels until the context ends, then removes the labels: a node whose
// daemons go starts no VMs. It returns an error only if that removal fails.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(k.Every)
	defer tick.Stop()
	for {
		k.tell(ctx, k.look(ctx))
		select {
		case <-ctx.Done():
			return k.farewell(ctx)
		case <-tick.C:
		}
	}
}

// look makes the labels true once; the error says why the node has none, or why
// nobody knows.
func (k *Keeper) look(ctx context.Context) error {
	accel, problem := k.ask(ctx)
	now := time.Now()
	switch {
	case problem == nil:
		k.accel, k.ready = accel, now
	case now.Sub(k.ready) > k.Patience:
		k.accel = ""
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	node, err := k.Nodes.Get(ctx, k.Node)
	if err != nil {
		return fmt.Errorf("read node %s: %w", k.Node, err)
	}
	want := wanted(k.accel)
	if !knowsHandler(node) {
		want = nil
		problem = errors.Join(problem, fmt.Errorf(
			"kubelet of node %s does not know the runtime handler %q, set its containerRuntimeEndpoint to criproxy's socket: %w",
			k.Node, Handler, errdefs.ErrFailedPrecondition))
	}
	return errors.Join(k.label(ctx, node, want), problem)
}

// ask calls Accel in a time of its own: a vmruntime that hangs must not take the time
// in which its node loses the labels.
func (k *Keeper) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(k.Every, time.Second))
	defer cancel()
	return k.Accel(ctx)
}

func (k *Keeper) label(ctx context.Context, node *corev1.Node, want map[string]string) error {
	patch := changes(node, want)
	if len(patch) == 0 {
		return nil
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": patch}})
	if err != nil {
		return fmt.Errorf("encode labels of node %s: %w", k.Node, err)
	}
	if err := k.Nodes.Merge(ctx, k.Node, data); err != nil {
		return fmt.Errorf("label node %s: %w", k.Node, err)
	}
	k.Logger.InfoContext(ctx, "labelled node", "node", k.Node, "labels", want)
	return nil
}

func (k *Keeper) farewell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTimeout)
	defer cancel()
	node, err := k.Nodes.Get(ctx, k.Node)
	if err != nil {
		return fmt.Errorf("remove labels of node %s: %w", k.Node, err)
	}
	return k.label(ctx, node, nil)
}

// tell logs a problem when it is new.
func (k *Keeper) tell(ctx context.Context, problem error) {
	text := ""
	if problem != nil {
		text = problem.Error()
	}
	if text == k.told || ctx.Err() != nil {
		return
	}
	k.told = text
	if problem == nil {
		k.Logger.InfoContext(ctx, "node runs VMs", "node", k.Node, "accel", k.accel)
		return
	}
	k.Logger.WarnContext(ctx, "node is not ready for VMs", "node", k.Node, "err", problem)
}
