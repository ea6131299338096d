package kubeapi

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
)

// objectTimeout bounds the wait for one object: whoever asks has a pod to start.
const objectTimeout = 10 * time.Second

// Objects reads single ConfigMaps and Secrets. It keeps nothing, neither what it has
// read nor a connection, and reads the kubeconfig each time, because the certificates
// in it change.
type Objects struct {
	Kubeconfig string // "" for none: then nothing can be read
}

// Data returns the entries of a ConfigMap or Secret; kind is "configmap" or "secret".
//
// Errors: errdefs.ErrFailedPrecondition when there is no kubeconfig, no such object or no
// right to read it, errdefs.ErrUnavailable when the API server does not answer in time.
func (o Objects) Data(ctx context.Context, kind, namespace, name string) (map[string][]byte, error) {
	what := fmt.Sprintf("%s %s/%s", kind, namespace, name)
	if o.Kubeconfig == "" {
		return nil, fmt.Errorf("%s is not mounted in the pod and vmruntime has no --kubeconfig to ask the API server with: mount it: %w", what, errdefs.ErrFailedPrecondition)
	}
	client, err := New(o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if client.Client != nil {
		defer client.Client.CloseIdleConnections()
	}
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	get := func(resource string, into runtime.Object) error {
		return client.Get().Namespace(namespace).Resource(resource).Name(name).Do(ctx).Into(into)
	}
	if kind == "secret" {
		var secret corev1.Secret
		err := get("secrets", &secret)
		return secret.Data, explain(what, err)
	}
	var config corev1.ConfigMap
	err = get("configmaps", &config)
	data := config.BinaryData
	if data == nil {
		data = map[string][]byte{}
	}
	for key, text := range config.Data {
		data[key] = []byte(text)
	}
	return data, explain(what, err)
}

// explain says in one sentence what to do about an answer of the API server.
func explain(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s does not exist: create it: %w", what, errdefs.ErrFailedPrecondition)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not let vmruntime read %s (%w): mount it in the pod, so that kubelet fetches it: %w", what, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("ask the API server for %s, which the pod does not mount: %w: %w", what, err, errdefs.ErrUnavailable)
}
