// Package network gives a sandbox its network and hands it to a virtual machine.
//
// Setup makes a network namespace and runs CNI's ADD in it, as for any
// container. Connect then joins the interface that CNI made (eth0) with a tap
// device: all that arrives on the one leaves by the other, so that the guest,
// which gets eth0's MAC and addresses, takes eth0's place. eth0 itself keeps its
// addresses, so that CNI's CHECK goes on working. The guest learns its addresses
// from a DHCP server that listens on the tap alone, or from cloud-init.
//
//	node ── veth ── eth0 ◀──tc redirect──▶ tap0 ── QEMU
//	                                        │
//	                                       DHCP (in this process)
//
// Nouns: an attachment is the record of one CNI ADD, written before ADD runs, so
// that DEL is possible whatever happens in between and whatever becomes of the
// CNI configuration; a Result is what the sandbox got.
//
// Manager is safe for concurrent use; calls for one sandbox run one at a time.
// CNI plugins run in the namespaces of the calling thread.
//
// Traps: the namespace's own IP stack still owns the pod's addresses, so a
// process inside the namespace that dials the pod's IP reaches the namespace and
// not the guest: dial from the node. The CNI configuration may be shared with
// another runtime, so plugins are asked to collect garbage only when
// Options.Exclusive says that the networks are Ambipod's alone.
package network
