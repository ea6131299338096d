package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
)

// Root describes a root disk. Sizes are in bytes.
type Root struct {
	Path        string // where the disk is to be; absolute
	Base        string // the image under it; absolute
	BaseFormat  string // raw or qcow2, as the image store found it
	VirtualSize int64  // of the base
	Size        int64  // of the disk as the guest sees it; 0 means VirtualSize
	UID, GID    int    // QEMU's user and group, who own the disk
}

// Formats that the image store keeps.
const (
	formatRaw   = "raw"
	formatQCOW2 = "qcow2"
)

var baseFormats = []string{formatRaw, formatQCOW2}

// sectorSize is what disk sizes are multiples of, in bytes.
const sectorSize = 512

func (r Root) validate() error {
	switch {
	case !filepath.IsAbs(r.Path) || !filepath.IsAbs(r.Base):
		return fmt.Errorf("root disk %q over %q: paths must be absolute: %w", r.Path, r.Base, errdefs.ErrInvalidArgument)
	case !slices.Contains(baseFormats, r.BaseFormat):
		return fmt.Errorf("root disk %s: image format %q is not raw or qcow2: %w", r.Path, r.BaseFormat, errdefs.ErrInvalidArgument)
	case r.VirtualSize <= 0:
		return fmt.Errorf("root disk %s: image size %d is not positive: %w", r.Path, r.VirtualSize, errdefs.ErrInvalidArgument)
	case r.Size != 0 && r.Size < r.VirtualSize:
		return fmt.Errorf("root disk of %d bytes is smaller than its image, which needs %d; ask for at least that: %w",
			r.Size, r.VirtualSize, errdefs.ErrInvalidArgument)
	}
	return nil
}

// size is the disk's size, rounded up to whole sectors.
func (r Root) size() int64 {
	size := max(r.Size, r.VirtualSize)
	return (size + sectorSize - 1) / sectorSize * sectorSize
}

// CreateRoot makes a root disk. If there is one at the path it is left alone,
// with what the guest has written; ErrAlreadyExists says that it has another base
// or size. A missing base yields ErrNotFound.
func CreateRoot(ctx context.Context, r Root) error {
	if err := r.validate(); err != nil {
		return err
	}
	switch _, err := os.Lstat(r.Path); {
	case err == nil:
		return r.verify(ctx)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("create root disk: %w", err)
	}
	if err := checkBase(r.Base, r.BaseFormat); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		return fmt.Errorf("create root disk %s: base: %w", r.Path, err)
	}
	temp := unfinished(r.Path)
	err := ctx.Err()
	if err == nil {
		err = r.write(temp)
	}
	if err == nil {
		err = os.Rename(temp, r.Path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create root disk %s: %w", r.Path, err), removeFile(temp))
	}
	return nil
}

// unfinished is the name of a disk in the making.
func unfinished(path string) string { return path + ".new" }

func (r Root) write(path string) error {
	if err := removeFile(path); err != nil { // of an earlier attempt
		return err
	}
	if err := writeOverlay(path, r.Base, r.BaseFormat, r.size()); err != nil {
		return err
	}
	if err := os.Chown(path, r.UID, r.GID); err != nil {
		return err
	}
	return syncFile(path)
}

// verify compares an existing disk with what is asked for.
func (r Root) verify(ctx context.Context) error {
	info, err := readInfo(ctx, r.Path)
	if err != nil {
		return fmt.Errorf("look at root disk %s: %w", r.Path, err)
	}
	if info.Base != r.Base || info.BaseFormat != r.BaseFormat || info.VirtualSize != r.size() {
		return fmt.Errorf("root disk %s has %d bytes over %s (%s), not %d over %s (%s): %w",
			r.Path, info.VirtualSize, info.Base, info.BaseFormat, r.size(), r.Base, r.BaseFormat, errdefs.ErrAlreadyExists)
	}
	return nil
}

// Remove removes a disk and what an interrupted attempt to make it has left. It is
// no error if there is none.
func Remove(path string) error {
	if err := errors.Join(removeFile(path), removeFile(unfinished(path))); err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
