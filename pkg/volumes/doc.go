// Package volumes makes the disks that VMs write to.
//
// A root disk is a qcow2 overlay over an image of the store. The image's format is
// always stated, never probed: whoever probes a file that a guest could have written
// believes the guest. Disks belong to QEMU's user and to nobody else.
//
// Functions may run concurrently for different paths.
package volumes
