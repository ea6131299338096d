// Package cluster tests Ambipod as users of a cluster know it: by an unmodified
// kubectl, Kubernetes' own controllers and the manifests in examples/. Its tests
// carry the build tag e2e and share one private cluster, in which each has a
// namespace of its own.
package cluster
