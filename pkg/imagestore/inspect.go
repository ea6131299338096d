package imagestore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/qcow2"
)

const sectorSize = 512

// signature says how a kind of file is recognised, and what to call it.
type signature struct {
	offset int
	magic  string
	kind   string
}

// foreign are kinds of file that are mistaken for disk images, or that are disk
// images which QEMU reads but we do not want: their formats can name other files.
// The first one that matches counts.
var foreign = []signature{
	{0, "QFI\xfb\x00\x00\x00\x01", "a qcow (version 1) image"},
	{0, "KDMV", "a VMDK image"},
	{0, "COWD", "a VMDK image"},
	{0, "# Disk DescriptorFile", "a VMDK descriptor"},
	{0, "vhdxfile", "a VHDX image"},
	{0, "conectix", "a VHD image"},
	{0, "QED\x00", "a QED image"},
	{0, "WithoutFreeSpace", "a Parallels image"},
	{0, "WithouFreSpacExt", "a Parallels image"},
	{64, "\x7f\x10\xda\xbe", "a VDI image"},
	{0, "LUKS\xba\xbe", "a LUKS encrypted volume"},
	{32769, "CD001", "an ISO image (a CD, not a disk)"},
	{257, "ustar", "a tar archive"},
	{0, "PK\x03\x04", "a zip archive"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{0, "BZh", "a bzip2 file"},
	{0, "\x1f\x8b", "a gzip file"},
	{0, "\xfd7zXZ\x00", "an xz file"},
	{0, "\x28\xb5\x2f\xfd", "a zstd file"},
	{0, "\x7fELF", "an ELF program"},
	{0, "%PDF-", "a PDF document"},
	{0, "{", "a JSON document"},
}

// bootable are signs of a raw disk: a partition table, or a file system without one.
var bootable = []signature{
	{510, "\x55\xaa", "a disk with a boot sector"},
	{512, "EFI PART", "a disk with a GPT"},
	{4096, "EFI PART", "a disk with a GPT"},
	{1080, "\x53\xef", "an ext file system"},
	{0, "XFSB", "an XFS file system"},
}

func (s signature) matches(head []byte) bool {
	return len(head) >= s.offset && bytes.HasPrefix(head[s.offset:], []byte(s.magic))
}

// recognise tells the format of a file by its first bytes.
func recognise(head []byte) (Format, error) {
	if len(head) == 0 {
		return "", classed(errNoDisk, "the file is empty")
	}
	for _, s := range foreign {
		if s.matches(head) {
			return "", classed(errNoDisk, "the file is %s; convert it with qemu-img convert -O qcow2", s.kind)
		}
	}
	if bytes.HasPrefix(head, []byte(qcow2.Magic)) {
		return FormatQCOW2, nil
	}
	if kind := markup(head); kind != "" {
		return "", classed(errNoDisk, "the file is %s, perhaps an error page", kind)
	}
	for _, s := range bootable {
		if s.matches(head) {
			return FormatRaw, nil
		}
	}
	return "", classed(errNoDisk, "the file is no qcow2 image and has neither a boot sector nor a file system")
}

// markup recognises web pages and the like.
func markup(head []byte) string {
	text := strings.ToLower(string(bytes.TrimLeft(head[:min(len(head), 1<<10)], "\xef\xbb\xbf \t\r\n")))
	switch {
	case strings.HasPrefix(text, "<!doctype html"), strings.HasPrefix(text, "<html"):
		return "an HTML page"
	case strings.HasPrefix(text, "<"):
		return "an XML document"
	}
	return ""
}

// checkHead refuses by the first bytes what would be refused anyhow, before the
// rest is fetched.
func (s *Store) checkHead(head []byte, total int64) error {
	format, err := recognise(head)
	if err != nil {
		return err
	}
	if format == FormatQCOW2 {
		_, err = qcow2.CheckHeader(head, s.opts.MaxVirtualSize)
	} else if total > s.opts.MaxVirtualSize {
		err = classed(errNoDisk, "the disk has %d bytes; at most %d are allowed", total, s.opts.MaxVirtualSize)
	}
	return err
}

// inspect judges a complete file by its own metadata, without help from QEMU.
func (s *Store) inspect(file *os.File, size int64) (Format, int64, error) {
	if size > s.opts.MaxSize {
		return "", 0, classed(errdefs.ErrResourceExhausted, "the image has %d bytes; at most %d are allowed", size, s.opts.MaxSize)
	}
	head := make([]byte, min(size, headSize))
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", 0, fmt.Errorf("read image: %w", err)
	}
	format, err := recognise(head)
	if err != nil {
		return "", 0, err
	}
	if format == FormatQCOW2 {
		header, err := qcow2.Check(file, size, s.opts.MaxVirtualSize)
		return format, header.VirtualSize, err
	}
	if size%sectorSize != 0 {
		return "", 0, classed(errNoDisk, "the raw disk has %d bytes, not a multiple of %d, so it is cut short", size, sectorSize)
	}
	if size > s.opts.MaxVirtualSize {
		return "", 0, classed(errNoDisk, "the disk has %d bytes; at most %d are allowed", size, s.opts.MaxVirtualSize)
	}
	return format, size, nil
}
