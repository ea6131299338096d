// Package vmctl is what cmd/vmctl does, apart from its command line: it finds a
// node's daemons, lists the VM pods there, gets into them, and collects what a bug
// report needs.
//
// Nouns: Settings say where the daemons are; a Node is the connection to them; a VM is
// a pod's newest VM, whether it runs or not.
//
// A Node talks to vmruntime's CRI socket, or to criproxy's, where container pods are
// left out. What else it must know (libvirt's URI, the address of the status pages)
// vmruntime tells itself.
//
// Concurrency: a Node may be used from any number of goroutines.
//
// Traps: vmruntime serves exec, attach and port-forward on the node's loopback, so
// vmctl must run in the node's network namespace.
package vmctl
