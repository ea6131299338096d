// Package statushttp is how Ambipod's daemons show their state over HTTP, and how
// vmctl reads it: metrics, health, readiness, and what else a daemon has to tell.
//
// Nouns: an address is "HOST:PORT" or, as "unix:/path", a unix socket (0600); Options
// are the pages; a Client reads them.
//
// Concurrency: pages are made by the goroutine of each request; Client may be used
// from any number of goroutines.
//
// Traps: a TCP address asks nobody who they are. What is of no use to a monitoring
// system is shown on unix sockets only.
package statushttp
