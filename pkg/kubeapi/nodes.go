package kubeapi

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// Nodes are the calls about nodes. Errors are those of k8s.io/apimachinery's package
// errors, for example NotFound.
type Nodes struct{ Client rest.Interface }

// Get reads one node.
func (n Nodes) Get(ctx context.Context, name string) (*corev1.Node, error) {
	var node corev1.Node
	err := n.Client.Get().Resource("nodes").Name(name).Do(ctx).Into(&node)
	return &node, err
}

// Merge changes one node by a JSON merge patch (RFC 7386).
func (n Nodes) Merge(ctx context.Context, name string, patch []byte) error {
	return n.Client.Patch(types.MergePatchType).Resource("nodes").Name(name).Body(patch).Do(ctx).Error()
}
