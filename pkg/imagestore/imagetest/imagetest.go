// Package imagetest makes small disk images, good and hostile ones, for tests.
package imagetest

import (
	"bytes"
	"encoding/binary"
)

const (
	clusterBits = 16
	clusterSize = 1 << clusterBits
	sectorSize  = 512
)

// Field is where a number lies in a qcow2 header, and its width in bytes.
type Field struct{ Offset, Width int }

// Fields of the qcow2 header, version 3.
var (
	Version          = Field{4, 4}
	BackingOffset    = Field{8, 8}
	BackingSize      = Field{16, 4}
	ClusterBits      = Field{20, 4}
	VirtualSize      = Field{24, 8}
	Encryption       = Field{32, 4}
	L1Entries        = Field{36, 4}
	L1Offset         = Field{40, 8}
	RefcountOffset   = Field{48, 8}
	RefcountClusters = Field{56, 4}
	Snapshots        = Field{60, 4}
	SnapshotsOffset  = Field{64, 8}
	Incompatible     = Field{72, 8}
	Autoclear        = Field{88, 8}
	RefcountOrder    = Field{96, 4}
	HeaderLength     = Field{100, 4}
	CompressionType  = Field{104, 1}
)

// Offsets of the tables of an image made by QCOW2.
const (
	refcountTable = 1 * clusterSize
	refcountBlock = 2 * clusterSize
	l1Table       = 3 * clusterSize
	clusters      = 4
)

// QCOW2Size is the virtual size of an image made by QCOW2, in bytes.
const QCOW2Size = 1 << 20

// QCOW2 makes an empty disk whose file is 256 KiB long. Images with different
// marks differ in nothing else.
func QCOW2(mark string) []byte {
	image := make([]byte, clusters*clusterSize)
	copy(image, "QFI\xfb")
	for field, value := range map[Field]uint64{
		Version: 3, ClusterBits: clusterBits, VirtualSize: QCOW2Size,
		L1Entries: 1, L1Offset: l1Table,
		RefcountOffset: refcountTable, RefcountClusters: 1,
		RefcountOrder: 4, HeaderLength: 112,
	} {
		Set(image, field, value)
	}
	// An extension of a type that readers skip carries the mark.
	binary.BigEndian.PutUint32(image[112:], 0x6d61726b)
	binary.BigEndian.PutUint32(image[116:], uint32(len(mark))) //nolint:gosec // G115: short
	copy(image[120:clusterSize/2], mark)
	binary.BigEndian.PutUint64(image[refcountTable:], refcountBlock)
	for cluster := range clusters {
		binary.BigEndian.PutUint16(image[refcountBlock+2*cluster:], 1)
	}
	return image
}

// Set writes a field of a header.
func Set(image []byte, f Field, value uint64) {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], value)
	copy(image[f.Offset:f.Offset+f.Width], raw[8-f.Width:])
}

// With is a copy of an image with one field changed.
func With(image []byte, f Field, value uint64) []byte {
	image = bytes.Clone(image)
	Set(image, f, value)
	return image
}

// Extension is a copy of an image whose first header extension has another type.
func Extension(image []byte, kind uint32) []byte {
	image = bytes.Clone(image)
	binary.BigEndian.PutUint32(image[112:], kind)
	return image
}

// L1Entry is a copy of an image made by QCOW2 with another first L1 entry.
func L1Entry(image []byte, value uint64) []byte {
	return With(image, Field{l1Table, 8}, value)
}

// RefcountEntry is a copy of an image made by QCOW2 with another first entry of
// the refcount table.
func RefcountEntry(image []byte, value uint64) []byte {
	return With(image, Field{refcountTable, 8}, value)
}

// Raw makes a disk of size bytes with a boot sector's signature, filled from the mark.
func Raw(mark string, size int) []byte {
	image := bytes.Repeat([]byte(mark+"."), size/(len(mark)+1)+1)[:size]
	if size >= sectorSize {
		copy(image[sectorSize-2:], "\x55\xaa")
	}
	return image
}
