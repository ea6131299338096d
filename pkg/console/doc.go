// Package console copies what guests print on their serial console into the log
// files that kubelet reads.
//
// Nouns: the console is the raw file that virtlogd writes and rotates (L becomes
// L.0, L.0 becomes L.1 …); the log is the file in CRI log format whose name kubelet
// chose; a Follower copies one to the other; the Watcher tells all Followers of a
// process when there is something to do.
//
// Apart from all that, Attachments connect people with the console's live end, a
// socket.
//
// Every byte is copied exactly once, also when the process is killed at any
// instant and another goes on: a small state file says how much of the console has
// been copied and how long the log was then, and a log that is longer is cut back
// to that. What virtlogd rotates away before it was copied is lost, and the loss
// is logged.
//
// Concurrency: each Follower has one goroutine, which owns its files; all methods
// may be called concurrently. A guest that floods its console keeps its own
// Follower busy and no other; the memory of a Follower is bounded.
//
// Traps:
//
//   - One inotify instance is shared, because a user may have only 128 by default.
//   - A prompt has no newline. It is written as a partial record (tag P) after a
//     short while, and kubelet joins what follows.
//   - File identity is inode and birth time: inode numbers of deleted consoles are
//     used again at once.
package console
