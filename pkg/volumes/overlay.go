package volumes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

// The layout of an overlay that is still empty, in clusters: header, table of reference
// counts, their first block, and from there on the table of tables (L1). The format is
// that of QEMU's docs/interop/qcow2.txt, version 3.
const (
	overlayMagic    = "QFI\xfb"
	clusterBits     = 16
	clusterSize     = 1 << clusterBits
	refcountTable   = 1
	refcountBlock   = 2
	l1Table         = 3
	l1EntrySize     = 8
	l1EntryCovers   = clusterSize / l1EntrySize * clusterSize // bytes of the disk
	maxL1Size       = 32 << 20                                // bytes, as in QEMU
	maxBackingName  = 1023                                    // bytes, as in QEMU
	refcountOrder   = 4                                       // counts of 16 bits
	headerLength    = 112
	backingFormatID = 0xe2792aca
)

// overlayHeader is the header as it is in the file, big-endian.
type overlayHeader struct {
	Magic                 [4]byte
	Version               uint32
	BackingOffset         uint64
	BackingSize           uint32
	ClusterBits           uint32
	Size                  uint64
	Encryption            uint32
	L1Entries             uint32
	L1Offset              uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	Snapshots             uint32
	SnapshotsOffset       uint64
	Incompatible          uint64
	Compatible            uint64
	Autoclear             uint64
	RefcountOrder         uint32
	HeaderLength          uint32
	Compression           uint64 // one byte and padding

	FormatID     uint32
	FormatLength uint32
	Format       [8]byte
	EndID        uint32
	EndLength    uint32
}

// writeOverlay makes an empty qcow2 file over an image. qemu-img does the same, but
// needs ten times as long just to start.
func writeOverlay(path, base, baseFormat string, size int64) error {
	l1Entries := (size + l1EntryCovers - 1) / l1EntryCovers
	l1Clusters := (l1Entries*l1EntrySize + clusterSize - 1) / clusterSize
	if len(base) > maxBackingName || l1Entries*l1EntrySize > maxL1Size {
		return fmt.Errorf("a disk of %d bytes over %q does not fit into qcow2: %w", size, base, errdefs.ErrInvalidArgument)
	}
	h := overlayHeader{
		Version: 3, ClusterBits: clusterBits, Size: uint64(size), //nolint:gosec // positive
		L1Entries: uint32(l1Entries), L1Offset: l1Table * clusterSize, //nolint:gosec // limited above
		RefcountTableOffset: refcountTable * clusterSize, RefcountTableClusters: 1,
		RefcountOrder: refcountOrder, HeaderLength: headerLength,
		FormatID: backingFormatID, FormatLength: uint32(len(baseFormat)), //nolint:gosec // a few letters
		BackingOffset: uint64(binary.Size(overlayHeader{})), BackingSize: uint32(len(base)), //nolint:gosec // limited above
	}
	copy(h.Magic[:], overlayMagic)
	copy(h.Format[:], baseFormat)
	clusters := l1Table + l1Clusters
	var image bytes.Buffer
	if err := binary.Write(&image, binary.BigEndian, h); err != nil {
		return err
	}
	image.WriteString(base)
	image.Write(make([]byte, refcountTable*clusterSize-image.Len()))
	image.Write(binary.BigEndian.AppendUint64(nil, refcountBlock*clusterSize))
	image.Write(make([]byte, refcountBlock*clusterSize-image.Len()))
	for range clusters {
		image.Write([]byte{0, 1})
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(image.Bytes())
	if err == nil {
		err = file.Truncate(clusters * clusterSize)
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// checkBase refuses an image that is obviously not of the format that it is said to
// have: QEMU would only notice when the VM starts.
func checkBase(path, format string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // nothing was written through it
	head := make([]byte, len(overlayMagic))
	_, _ = file.ReadAt(head, 0) // a file too short has not these bytes
	if format == formatQCOW2 && string(head) != overlayMagic {
		return fmt.Errorf("image %s is no qcow2 file: %w", path, errdefs.ErrFailedPrecondition)
	}
	return nil
}
