// Package nodelabels keeps the labels by which Kubernetes' scheduler finds the nodes
// that run VMs. A node has them while its vmruntime answers that it is ready and its
// kubelet knows the runtime handler, and loses them when either is no longer so.
//
// A Keeper owns the three labels of one node and touches nothing else; another hand
// that removes one of them sees it come back within Keeper.Every. Its methods are not
// meant for several goroutines.
package nodelabels
