// Package guestagent is a client of qemu-guest-agent, the service that runs in a
// guest and obeys commands from the node (protocol: QEMU's qga/qapi-schema.json;
// tried with version 7.2 of Debian 12).
//
// Nouns: an Agent is the agent of one VM; a Command is a program that it starts in
// the guest, without a shell, as root, and without a terminal.
//
// What carries the bytes is not this package's: libvirtd owns the agent's channel,
// one client at a time, synchronises with the agent (guest-sync), matches answers to
// commands and bounds them; Commander is its face here.
//
// The guest is hostile. An answer may be anything: it is decoded strictly, every
// part of it is bounded, and no value from it is used as a size. A guest without an
// agent, or with one that never answers, costs its caller answerTimeout, not more.
//
// Concurrency: an Agent is safe for concurrent use; commands of one VM are carried
// one after the other. An Agent has no goroutines and needs no closing.
//
// Traps: the agent collects a program's output until it ends, so there is no
// streaming, and an answer must fit into one message of libvirt's: see MaxOutput.
// pkg/guestexec has no such limits and needs more of the guest. The agent forgets
// how a program ended once it has told, so that answer must not be lost.
package guestagent
