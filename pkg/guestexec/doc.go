// Package guestexec runs commands in a guest with live streams: standard input,
// output and error, or a terminal that can be resized. docs/exec.md says why it is
// built this way.
//
// Nouns: the helper is cmd/vmguest, a small static program that the guest agent is
// told to receive and to start when a VM's first command comes; a session is the
// conversation with a helper over the virtio-serial port wire.Port, which all
// commands of a VM share.
//
// Concurrency: an Executor is safe for concurrent use. It has one session for each
// VM that had a command, made on demand and kept until Forget, Close, or the helper's
// end; a session that broke is replaced with the next command. Commands share a
// session without waiting for each other: each stream has a window of its own.
//
// The guest is hostile and may be what answers in the helper's name: all that is read
// is bounded (package wire), the number of commands is too, and a command never holds
// its caller beyond its context.
//
// Traps: a command ends when its program has ended and its output was carried;
// programs that it left behind in the guest go on. When vmruntime ends, the helper
// kills the commands that it knows and ends, too.
package guestexec
