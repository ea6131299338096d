// Package dhcp is a DHCPv4 server for one guest (RFC 2131).
//
// A Server listens on a guest's tap device and tells that guest the one address
// that its pod has; it keeps no state, so it can be stopped and started anew at
// any time. It works on raw frames because the namespace's own IP stack neither
// owns the server's address nor is to answer for it.
//
// Every byte that arrives was written by the guest and is not trusted: frames
// are bounded, only those that carry the guest's own MAC are answered, and a
// flood is left to the kernel to drop. Config and the answer to a frame are pure;
// Server owns one goroutine, which Close awaits.
package dhcp
