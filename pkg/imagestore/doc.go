// Package imagestore keeps the disk images that VMs boot from: it fetches them,
// proves that they are harmless, stores each content once, and frees it when
// nobody needs it any more.
//
// Nouns: a Reference is an image name taken apart; a location is the place on the
// network that it means on this node; a flight is one download that all
// concurrent pulls from one place share; a partial is its unfinished file, which
// a later pull continues; a record is an image as the index knows it; a holder is
// the container of a VM that runs on an image.
//
// Files of a store:
//
//	index.db           bolt, the truth about images; one process at a time
//	data/<id>          image files, named by their SHA-256, 0440, group of QEMU
//	describe/<id>.json a copy of each record, read only when the index is lost
//	partial/<key>.*    downloads that are not complete, by hash of their URL
//
// Buckets of the index, all values JSON except the version:
//
//	meta     version → decimal number, now 1; a higher one is refused
//	images   ID      → record
//	holders  holder  → list of IDs
//
// An image exists from the moment at which the index knows it until the index
// forgets it. Files are written before and removed after that, so a crash leaves
// at most files that the index does not know, and Open removes them. The only
// exception to "the index counts" is an index that is lost or corrupt: it is then
// made anew from data and describe.
//
// Everything that comes from a server is hostile. Before any other program looks
// at an image, its format is told by its first bytes (qcow2 and raw are accepted)
// and package qcow2 checks that it refers to nothing outside itself; qemu-img
// check runs after that, as QEMU's user and under limits. The format is recorded
// and never guessed again.
//
// A Store may be used by any number of goroutines. Reads are answered from memory.
// Lock order: Store.commit, then flights.mu, then index.mu; none is held
// while bytes travel.
package imagestore
