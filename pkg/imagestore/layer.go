package imagestore

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	diskFolder     = "disk" // of a KubeVirt containerDisk
	whiteout       = ".wh." // begins the name of what an upper layer removes
	maxTarEntries  = 10000
	tarMagicOffset = 257
)

// errNoDiskInLayer: a layer without a file in /disk, so the one below may have it.
var errNoDiskInLayer = classed(errdefs.ErrInvalidArgument, "no file in /disk of any layer; a container disk has its disk image there")

// isTar recognises a tar archive by its first bytes.
func isTar(head []byte) bool {
	return signature{offset: tarMagicOffset, magic: "ustar"}.matches(head)
}

// unpackLayer writes the only file in /disk of a layer to a new file. Nothing is
// written by the names in the archive.
func (s *Store) unpackLayer(to string, layer io.Reader) (id string, size int64, err error) {
	archive := tar.NewReader(layer)
	found := ""
	for range maxTarEntries {
		header, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF) && found == "":
			return "", 0, errNoDiskInLayer
		case errors.Is(err, io.EOF):
			return id, size, nil
		case err != nil:
			return "", 0, explainTar(err)
		}
		isDisk, err := diskEntry(header)
		if err != nil {
			return "", 0, err
		}
		if !isDisk {
			continue
		}
		if found != "" {
			return "", 0, classed(errNoDisk, "the container disk has several files in /disk: %q and %q", excerpt(found), excerpt(header.Name))
		}
		found = header.Name
		if id, size, err = s.unpackEntry(to, header, archive); err != nil {
			return "", 0, err
		}
	}
	return "", 0, classed(errNoDisk, "a layer has more than %d files", maxTarEntries)
}

func (s *Store) unpackEntry(to string, header *tar.Header, archive io.Reader) (id string, size int64, err error) {
	if header.Size > s.opts.MaxSize {
		return "", 0, classed(errdefs.ErrResourceExhausted, "the disk %q has %d bytes; at most %d are allowed", excerpt(header.Name), header.Size, s.opts.MaxSize)
	}
	if err := s.makeRoom(header.Size); err != nil {
		return "", 0, err
	}
	head, err := peek(archive)
	if err != nil {
		return "", 0, explainTar(err)
	}
	id, size, err = s.unpackDisk(to, head, io.MultiReader(strings.NewReader(string(head)), archive))
	if err != nil {
		return "", 0, fmt.Errorf("disk %q: %w", excerpt(header.Name), explainTar(err))
	}
	return id, size, nil
}

// diskEntry tells whether an entry is a file in /disk. Entries that try to leave
// the archive's tree, and links where the disk should be, are refused.
func diskEntry(h *tar.Header) (bool, error) {
	for part := range strings.SplitSeq(h.Name, "/") {
		if part == ".." {
			return false, classed(errNoDisk, "a layer has a file named %q, which leads out of it", excerpt(h.Name))
		}
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if path.Dir(name) != diskFolder || strings.HasPrefix(path.Base(name), whiteout) {
		return false, nil
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return true, nil
	case tar.TypeDir:
		return false, nil
	}
	return false, classed(errNoDisk, "the container disk's %q is no regular file", excerpt(h.Name))
}

// explainTar keeps our own errors and the connection's, and says of all others
// that they are the archive's fault.
func explainTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) ||
		errors.Is(err, tar.ErrInsecurePath) || errors.Is(err, io.ErrUnexpectedEOF) {
		return classed(errNoDisk, "the layer is a damaged tar archive: %w", err)
	}
	return err
}
