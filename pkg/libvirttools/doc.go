// Package libvirttools is Ambipod's only door to libvirt: it builds the domain
// XML of a VM and drives libvirtd through the life of that domain.
//
// Nouns. A Domain describes a VM; BuildXML turns it into libvirt's XML without
// touching anything. The mark is an element in the domain's metadata that says
// which Ambipod node, sandbox and container the domain belongs to. A Client talks
// to one libvirtd: it defines, starts, stops and watches domains that carry its
// owner's mark, and refuses to change any other. Domains are persistent in
// libvirt's sense: defined by CreateContainer, undefined by RemoveContainer.
//
// Concurrency. A Client may be used from any number of goroutines. Each libvirt
// call runs in a goroutine of its own, because libvirt knows no deadlines: when
// the context of a call ends, the caller gets its answer at once, and the
// goroutine ends when libvirtd answers, or when the keep-alive finds the
// connection dead (Options.Silence). Close waits for them. Calls that only look have a
// connection apart from calls that act, since libvirtd answers at most five calls
// of one connection at a time and starting a VM takes a while.
//
// Traps. libvirt's client library has one event loop for the whole process; it
// runs while any Client is open. A connection that exists before the loop is
// registered never gets events or keep-alives, hence nothing else in the process
// may open one. libvirtd forgets on its restart why an inactive domain stopped,
// and does not deliver later what happened while it was down: Watch says so by
// an event of kind Resync. All PCI devices of a domain have addresses that are
// fixed here, below FirstNICSlot; see there before adding one.
package libvirttools
