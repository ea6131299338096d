// Package kubeapi reaches Kubernetes' API for the few calls that a node's daemon
// makes. It is client-go's REST client with the types of the core group alone: the
// generated clients register every API group when the program starts, which costs
// each process 24 MB of memory that it never uses.
//
// Clients are safe for concurrent use.
package kubeapi

import (
	"fmt"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// New makes a client of the core group, version 1. A kubeconfig that is "" means the
// service account of the pod that this process runs in. Nothing is sent yet; a
// kubeconfig that cannot be used gives errdefs.ErrInvalidArgument.
func New(kubeconfig string) (*rest.RESTClient, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register the types of Kubernetes' API: %w", err)
	}
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig %s: %w: %w", kubeconfig, err, errdefs.ErrInvalidArgument)
	}
	return client, nil
}

// InCluster is a kubeconfig that means the service account of the pod that this process
// runs in, where "" means something else.
const InCluster = "in-cluster"

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" || kubeconfig == InCluster {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no kubeconfig was named and this process runs in no pod: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w: %w", kubeconfig, err, errdefs.ErrInvalidArgument)
	}
	return config, nil
}
