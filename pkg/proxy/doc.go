// Package proxy serves the CRI to kubelet and routes each call to the backend, a
// CRI server of its own, that owns the object in question.
//
// One backend is the default: its IDs and messages travel unchanged, and
// whatever no rule claims goes to it. The IDs of every other backend carry that
// backend's prefix, so routing an ID needs no state. routes.go is the table of
// all methods; read it first.
//
// A frame is one encoded message. A rule says where in a request its routing
// signals are. A decision is the backend they lead to. An answer is one
// backend's part of a merged list.
//
// Concurrency: a Proxy serves any number of calls at once. Each call works on
// the snapshot of backends that was current when it arrived; Reload publishes a
// new snapshot and lets calls on the old one finish.
//
// Traps: frames are reference counted by gRPC; see codec.go for who frees them.
// Only lists may be answered from memory when a backend is silent, nothing else.
package proxy
