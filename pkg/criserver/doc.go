// Package criserver is vmruntime's face: the CRI v1 services whose containers are
// VMs. Each RPC stands in the file of its name: RunPodSandbox in sandbox_run.go,
// StopContainer in container_stop.go, PullImage in image_pull.go and so on.
//
// The nouns: a sandbox is a pod's network namespace with its CNI result; a
// container is a libvirt domain with its disks; both have a record in
// pkg/metadata. Handlers orchestrate the other packages, which know nothing of the
// CRI, through the small interfaces in server.go.
//
// # Order of things
//
// Each operation writes its intent, acts, then writes the result. A record in state
// creating, a container without Defined, and one with Removing are intents;
// recover.go carries them to their end when the process died between.
//
// # Truth about a VM
//
// libvirt says whether a VM runs, the record when and how it began and ended.
// Every end of a VM goes through settle (monitor.go), whoever notices it first: the
// event stream, a StopContainer that waits, or the comparison after a reconnect.
//
// # Concurrency
//
// locks serialises what changes one sandbox or one container, keyed by its ID, and the
// naming of sandboxes, which comes first; a sandbox's lock is taken before its
// container's. Nothing that waits for a guest
// holds a lock.
//
// # Errors
//
// Handlers return classes of github.com/containerd/errdefs; edge.go turns them into
// gRPC codes.
package criserver
