// Package qcow2 decides from a bounded read of its metadata whether a QCOW2 file
// from an untrusted place may be handed to QEMU.
//
// It reads the header, its extensions, the active L1 table, the snapshot table and the
// refcount table: all the places that can make QEMU open another file, allocate absurd
// amounts of memory or seek outside the image. It does not follow L2 tables;
// that is the task of qemu-img check, which runs afterwards under limits.
// Layout and names follow docs/interop/qcow2 of the QEMU sources.
//
// The package has no state; everything may be called concurrently.
package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/containerd/errdefs"
)

// Magic is how every QCOW file begins.
const Magic = "QFI\xfb"

// ErrRefused is in the chain of every error that is about the file's content (as
// opposed to a failing read).
var ErrRefused = fmt.Errorf("qcow2 image refused: %w", errdefs.ErrInvalidArgument)

// refusal says for people why an image was refused.
type refusal string

func (r refusal) Error() string { return "the qcow2 image is refused: " + string(r) }

func (r refusal) Unwrap() error { return ErrRefused }

// Bits of the incompatible feature field.
const (
	featureDirty        = 1 << 0
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featureCompression  = 1 << 3
	featureExtendedL2   = 1 << 4
	featuresKnown       = 1<<5 - 1
)

// Bits of the autoclear feature field.
const (
	autoclearBitmaps     = 1 << 0 // the extension about them counts
	autoclearRawExternal = 1 << 1
)

// Types of header extensions that matter here; others are skipped.
const (
	extensionEnd          = 0
	extensionExternalData = 0x44415441
	extensionEncryption   = 0x0537be77
	extensionBitmaps      = 0x23852875
)

// Bounds that QEMU itself keeps, or that no honest image reaches.
const (
	headerSizeV2      = 72
	headerSizeV3      = 104
	minClusterBits    = 9
	minExtendedBits   = 14
	maxClusterBits    = 21
	maxRefcountOrder  = 6
	maxL1Bytes        = 32 << 20
	maxRefcountBytes  = 8 << 20
	maxSnapshots      = 65536
	minSnapshotBytes  = 40
	maxSnapshotExtra  = 1 << 10
	bitmapsBytes      = 24 // of the extension
	maxBitmapsBytes   = 64 << 20
	maxExtensions     = 64
	sectorSize        = 512
	tableEntryBytes   = 8
	l1OffsetMask      = 0x00fffffffffffe00
	refcountMask      = 0xfffffffffffffe00
	compressionZstd   = 1
	readChunk         = 64 << 10
	longestHeaderSize = 1 << minClusterBits
)

// Header is what the store needs to know of an accepted image.
type Header struct {
	Version     int   // 2 or 3
	VirtualSize int64 // bytes the guest sees, a multiple of 512
	ClusterSize int64 // bytes
	Snapshots   int   // internal snapshots
	Zstd        bool  // clusters may be compressed with zstd
}

// header is the on-disk header with all the fields that are checked.
type header struct {
	version           uint32
	backingOffset     uint64
	clusterBits       uint32
	size              uint64
	crypt             uint32
	l1Entries         uint32
	l1Offset          uint64
	refcountOffset    uint64
	refcountClusters  uint32
	snapshots         uint32
	snapshotsOffset   uint64
	incompatible      uint64
	autoclear         uint64
	refcountOrder     uint32
	length            uint32
	compression       byte
	clusterSize       uint64
	entriesPerL2Table uint64
}

// CheckHeader judges the first bytes of a file whose length is not yet known,
// so that a bad image can be refused before all of it was fetched. An image that
// passes still has to pass Check.
func CheckHeader(head []byte, maxVirtualSize int64) (Header, error) {
	h, err := parse(head)
	if err != nil {
		return Header{}, err
	}
	if err := h.check(maxVirtualSize); err != nil {
		return Header{}, err
	}
	return h.public(), nil
}

// Check judges a complete file of the given length. Errors that are about the
// content contain ErrRefused and say what was found.
func Check(r io.ReaderAt, fileSize, maxVirtualSize int64) (Header, error) {
	head := make([]byte, min(fileSize, longestHeaderSize))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("read qcow2 header: %w", err)
	}
	h, err := parse(head)
	if err != nil {
		return Header{}, err
	}
	if err := h.check(maxVirtualSize); err != nil {
		return Header{}, err
	}
	if err := h.checkExtensions(r, fileSize); err != nil {
		return Header{}, err
	}
	if err := h.checkTables(r, uint64(fileSize)); err != nil { //nolint:gosec // G115: a file's length is not negative
		return Header{}, err
	}
	return h.public(), nil
}

func parse(head []byte) (header, error) {
	if len(head) < headerSizeV2 || !bytes.HasPrefix(head, []byte(Magic)) {
		return header{}, refuse("it does not begin with a qcow2 header")
	}
	be := binary.BigEndian
	h := header{
		version:          be.Uint32(head[4:]),
		backingOffset:    be.Uint64(head[8:]),
		clusterBits:      be.Uint32(head[20:]),
		size:             be.Uint64(head[24:]),
		crypt:            be.Uint32(head[32:]),
		l1Entries:        be.Uint32(head[36:]),
		l1Offset:         be.Uint64(head[40:]),
		refcountOffset:   be.Uint64(head[48:]),
		refcountClusters: be.Uint32(head[56:]),
		snapshots:        be.Uint32(head[60:]),
		snapshotsOffset:  be.Uint64(head[64:]),
		length:           headerSizeV2,
		refcountOrder:    4,
	}
	switch h.version {
	case 2:
	case 3:
		if len(head) < headerSizeV3 {
			return header{}, refuse("its version 3 header is cut short")
		}
		h.incompatible = be.Uint64(head[72:])
		h.autoclear = be.Uint64(head[88:])
		h.refcountOrder = be.Uint32(head[96:])
		h.length = be.Uint32(head[100:])
		if h.length > headerSizeV3 && len(head) > headerSizeV3 {
			h.compression = head[headerSizeV3]
		}
	default:
		return header{}, refuse("its version is %d; versions 2 and 3 are supported", h.version)
	}
	return h, nil
}

func (h *header) check(maxVirtualSize int64) error {
	if err := h.checkForeignData(); err != nil {
		return err
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return refuse("its cluster size is 2^%d bytes; 2^%d to 2^%d are supported", h.clusterBits, minClusterBits, maxClusterBits)
	}
	if h.incompatible&featureExtendedL2 != 0 && h.clusterBits < minExtendedBits {
		return refuse("extended L2 entries need clusters of 16 KiB or more")
	}
	if h.refcountOrder > maxRefcountOrder {
		return refuse("its refcount order is %d; the highest is %d", h.refcountOrder, maxRefcountOrder)
	}
	h.clusterSize = 1 << h.clusterBits
	if h.version == 3 && (h.length < headerSizeV3 || h.length%8 != 0 || uint64(h.length) > min(h.clusterSize, longestHeaderSize)) {
		return refuse("its header length is %d", h.length)
	}
	if err := h.checkCompression(); err != nil {
		return err
	}
	return h.checkSize(maxVirtualSize)
}

// checkForeignData refuses all that would make QEMU open another file or ask for
// a key, and images that were not closed properly.
func (h *header) checkForeignData() error {
	switch {
	case h.backingOffset != 0: // the size field is undefined without an offset
		return refuse("it has a backing file; flatten it with: qemu-img convert -O qcow2")
	case h.crypt != 0:
		return refuse("it is encrypted")
	case h.incompatible&featureExternalData != 0, h.autoclear&autoclearRawExternal != 0:
		return refuse("it keeps its data in an external file; flatten it with: qemu-img convert -O qcow2")
	case h.incompatible&^featuresKnown != 0:
		return refuse("it needs unknown features (bits %#x)", h.incompatible&^featuresKnown)
	case h.incompatible&featureCorrupt != 0:
		return refuse("it is marked corrupt")
	case h.incompatible&featureDirty != 0:
		return refuse("it was not closed properly (dirty bit); repair it with: qemu-img check -r all")
	}
	return nil
}

func (h *header) checkCompression() error {
	wantsType := h.incompatible&featureCompression != 0
	switch {
	case wantsType && h.compression != compressionZstd:
		return refuse("its compression type is %d; zlib and zstd are supported", h.compression)
	case !wantsType && h.compression != 0:
		return refuse("its compression type field contradicts its feature bits")
	}
	return nil
}

func (h *header) checkSize(maxVirtualSize int64) error {
	if h.size == 0 || h.size%sectorSize != 0 {
		return refuse("its virtual size is %d bytes; a multiple of %d is needed", h.size, sectorSize)
	}
	if h.size > uint64(maxVirtualSize) { //nolint:gosec // G115: a limit is not negative
		return refuse("its virtual size is %d bytes; at most %d are allowed", h.size, maxVirtualSize)
	}
	entryBytes := uint64(tableEntryBytes)
	if h.incompatible&featureExtendedL2 != 0 {
		entryBytes *= 2
	}
	h.entriesPerL2Table = h.clusterSize / entryBytes
	perL1Entry := h.clusterSize * h.entriesPerL2Table
	needed := (h.size + perL1Entry - 1) / perL1Entry
	if uint64(h.l1Entries) < needed || uint64(h.l1Entries)*tableEntryBytes > maxL1Bytes {
		return refuse("its L1 table has %d entries; the virtual size needs %d", h.l1Entries, needed)
	}
	if h.refcountClusters == 0 || uint64(h.refcountClusters)*h.clusterSize > maxRefcountBytes {
		return refuse("its refcount table has %d clusters", h.refcountClusters)
	}
	if h.snapshots > maxSnapshots {
		return refuse("it claims %d internal snapshots", h.snapshots)
	}
	return nil
}

// checkExtensions walks the header extensions, which end inside the first cluster.
func (h *header) checkExtensions(r io.ReaderAt, fileSize int64) error {
	end := min(int64(h.clusterSize), fileSize) //nolint:gosec // G115: at most 2 MiB
	at := int64(h.length)
	for range maxExtensions {
		var raw [8]byte
		if at+int64(len(raw)) > end {
			// QEMU, too, takes the end of the first cluster for the end of the list.
			return nil
		}
		if _, err := r.ReadAt(raw[:], at); err != nil {
			return fmt.Errorf("read qcow2 header extension at %d: %w", at, err)
		}
		kind := binary.BigEndian.Uint32(raw[:])
		length := int64(binary.BigEndian.Uint32(raw[4:]))
		switch kind {
		case extensionEnd:
			return nil
		case extensionExternalData:
			return refuse("it names an external data file; flatten it with: qemu-img convert -O qcow2")
		case extensionEncryption:
			return refuse("it is encrypted")
		case extensionBitmaps:
			if err := h.checkBitmaps(io.NewSectionReader(r, at+int64(len(raw)), length), uint64(fileSize)); err != nil { //nolint:gosec // G115: a file's length is not negative
				return err
			}
		}
		at += int64(len(raw)) + (length+7)&^7
		if at > end {
			return refuse("its header extension %#x is longer than the first cluster", kind)
		}
	}
	return refuse("it has more than %d header extensions", maxExtensions)
}

// checkBitmaps judges what an extension says about dirty bitmaps, if it counts.
func (h *header) checkBitmaps(extension *io.SectionReader, fileSize uint64) error {
	if h.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	var raw [bitmapsBytes]byte
	switch _, err := extension.ReadAt(raw[:], 0); {
	case errors.Is(err, io.EOF), err == nil && extension.Size() != bitmapsBytes:
		return refuse("its extension about bitmaps has %d bytes", extension.Size())
	case err != nil:
		return fmt.Errorf("read qcow2 header extension: %w", err)
	}
	length, offset := binary.BigEndian.Uint64(raw[8:]), binary.BigEndian.Uint64(raw[16:])
	if length > maxBitmapsBytes {
		return refuse("its bitmap directory has %d bytes", length)
	}
	return h.checkTable("bitmap directory", offset, length, fileSize)
}

func (h *header) checkTables(r io.ReaderAt, fileSize uint64) error {
	l1Bytes := uint64(h.l1Entries) * tableEntryBytes
	if err := h.checkTable("L1 table", h.l1Offset, l1Bytes, fileSize); err != nil {
		return err
	}
	refcountBytes := uint64(h.refcountClusters) * h.clusterSize
	if err := h.checkTable("refcount table", h.refcountOffset, refcountBytes, fileSize); err != nil {
		return err
	}
	if h.snapshots > 0 {
		if err := h.checkTable("snapshot table", h.snapshotsOffset, uint64(h.snapshots)*minSnapshotBytes, fileSize); err != nil {
			return err
		}
	}
	if err := h.checkSnapshots(r, fileSize); err != nil {
		return err
	}
	l1 := section(r, h.l1Offset, l1Bytes)
	if err := h.checkEntries(l1, "L1 table", l1OffsetMask, fileSize); err != nil {
		return err
	}
	refcounts := section(r, h.refcountOffset, refcountBytes)
	return h.checkEntries(refcounts, "refcount table", refcountMask, fileSize)
}

// checkSnapshots walks the snapshot table, whose entries differ in length.
func (h *header) checkSnapshots(r io.ReaderAt, fileSize uint64) error {
	at := h.snapshotsOffset
	for range h.snapshots {
		var raw [minSnapshotBytes]byte
		if at > fileSize-min(fileSize, minSnapshotBytes) {
			return refuse("its snapshot table ends outside the file")
		}
		if _, err := r.ReadAt(raw[:], int64(at)); err != nil { //nolint:gosec // G115: less than the file's length
			return fmt.Errorf("read qcow2 snapshot table: %w", err)
		}
		be := binary.BigEndian
		l1Bytes := uint64(be.Uint32(raw[8:])) * tableEntryBytes
		if extra := be.Uint32(raw[36:]); l1Bytes > maxL1Bytes || extra > maxSnapshotExtra {
			return refuse("a snapshot has an L1 table of %d bytes and %d more of its own", l1Bytes, extra)
		}
		if err := h.checkTable("L1 table of a snapshot", be.Uint64(raw[:]), l1Bytes, fileSize); err != nil {
			return err
		}
		length := minSnapshotBytes + uint64(be.Uint32(raw[36:])) + uint64(be.Uint16(raw[12:])) + uint64(be.Uint16(raw[14:]))
		at += (length + 7) &^ 7
	}
	return nil
}

// checkTable proves that a table lies inside the file, behind the header.
func (h *header) checkTable(name string, offset, length, fileSize uint64) error {
	if offset%h.clusterSize != 0 || offset == 0 {
		return refuse("its %s is at %d, which is no cluster of its own", name, offset)
	}
	if end, carry := bits.Add64(offset, length, 0); carry != 0 || end > fileSize {
		return refuse("its %s ends outside the file", name)
	}
	return nil
}

// section is a table's bytes; checkTable has proved them to be inside the file.
func section(r io.ReaderAt, offset, length uint64) *io.SectionReader {
	return io.NewSectionReader(r, int64(offset), int64(length)) //nolint:gosec // G115: both are less than the file's length
}

// checkEntries proves that each cluster that a table names begins inside the file.
func (h *header) checkEntries(table *io.SectionReader, name string, mask, fileSize uint64) error {
	buf := make([]byte, min(table.Size(), readChunk))
	for {
		n, err := io.ReadFull(table, buf)
		for i := 0; i+tableEntryBytes <= n; i += tableEntryBytes {
			cluster := binary.BigEndian.Uint64(buf[i:]) & mask
			if cluster == 0 {
				continue
			}
			if cluster%h.clusterSize != 0 || cluster >= fileSize {
				return refuse("its %s points outside the file", name)
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("read qcow2 %s: %w", name, err)
		}
	}
}

func (h *header) public() Header {
	return Header{
		Version:     int(h.version),
		VirtualSize: int64(h.size),        //nolint:gosec // G115: checked against a signed limit
		ClusterSize: int64(h.clusterSize), //nolint:gosec // G115: at most 2 MiB
		Snapshots:   int(h.snapshots),
		Zstd:        h.compression == compressionZstd,
	}
}

func refuse(format string, args ...any) error {
	return refusal(fmt.Sprintf(format, args...))
}
