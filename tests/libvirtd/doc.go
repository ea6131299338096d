// Package libvirtd runs private libvirt daemons for tests and for the demo node:
// a real libvirtd and virtlogd that share nothing with the machine's own.
//
// Nouns. An Instance is one pair of daemons whose files all live in one folder,
// its Dir. The daemons run in mount namespaces of their own in which parts of Dir
// cover /run/libvirt, /var/lib/libvirt, /var/log/libvirt, /etc/libvirt and
// /var/cache/libvirt; the outside reaches them by Instance.URI only. Guests and
// helpers that libvirtd starts inherit that mount namespace. It is also how Stop
// recognises what belongs to the instance: a process is ours if its /run/libvirt
// is Dir/run, which needs no record and cannot be confused by reused PIDs.
//
// Lifetime. The daemons leave the session of the process that started them and
// outlive it. Another process gets hold of them again with Load and ends them,
// and every guest, with Stop. Dir itself is the caller's to remove.
//
// Concurrency. An Instance is for one goroutine at a time; different folders do
// not disturb each other.
//
// Traps. libvirt probes the capabilities of its emulators again before each
// start of a domain for as long as /dev/kvm exists and QEMU's user cannot open
// it (over a minute each time), so the instance's mount namespace gets a
// /dev/kvm of its own that everybody may open. The machine's /run is hidden from the
// daemons, otherwise systemd-machined and firewalld would take part by the system bus. libvirt's
// control groups and AppArmor driver are off: the first is how Ambipod runs
// libvirt, the second would write profiles into the machine's /etc. Each daemon has
// tini for a parent, which reaps what the daemon leaves, and lasts until Stop.
package libvirtd
