// Package volumes makes, measures and removes the disks of virtual machines.
//
// Nouns: a base is a disk image in the image store, never written; a root disk is
// a qcow2 overlay over a base, which takes all that the guest writes.
//
// Functions may be called concurrently for different paths. A disk appears under
// its name when it is complete, so one that exists can be used.
//
// Traps:
//
//   - A disk's format is always stated, never probed: a guest can write a header
//     of its choice to a raw disk and would be given any file of the host.
//   - QEMU runs as an unprivileged user and must own its disks; the base must be
//     readable by it, with every folder on the way.
package volumes
