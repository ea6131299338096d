package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Blank describes a disk that begins empty.
type Blank struct {
	Path       string // where the disk is to be; absolute
	Format     string // raw or qcow2
	Size       int64  // in bytes, as the guest sees it; rounded up to sectors
	FileSystem string // that it is made with: ext4, or "" for none
	UID, GID   int    // QEMU's user and group, who own the disk
}

func (b Blank) validate() error {
	switch {
	case !filepath.IsAbs(b.Path):
		return fmt.Errorf("disk %q: its path must be absolute: %w", b.Path, errdefs.ErrInvalidArgument)
	case !slices.Contains(baseFormats, b.Format):
		return fmt.Errorf("disk %s: format %q is not raw or qcow2: %w", b.Path, b.Format, errdefs.ErrInvalidArgument)
	case b.FileSystem != "" && b.FileSystem != "ext4":
		return fmt.Errorf("disk %s: file system %q is not ext4: %w", b.Path, b.FileSystem, errdefs.ErrInvalidArgument)
	case b.Size <= 0:
		return fmt.Errorf("disk %s: size %d is not positive: %w", b.Path, b.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (b Blank) size() int64 { return (b.Size + sectorSize - 1) / sectorSize * sectorSize }

// CreateBlank makes an empty disk that takes no more room than what is written to it.
// If there is one at the path it is left alone, with what the guest has written;
// ErrAlreadyExists says that it has another size or is no file.
func CreateBlank(ctx context.Context, b Blank) error {
	if err := b.validate(); err != nil {
		return err
	}
	switch info, err := os.Lstat(b.Path); {
	case err == nil:
		return b.verify(ctx, info)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("create disk: %w", err)
	}
	temp := unfinished(b.Path)
	err := b.write(ctx, temp)
	if err == nil {
		err = os.Rename(temp, b.Path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create disk %s: %w", b.Path, err), removeFile(temp), removeFile(plain(temp)))
	}
	return nil
}

// OpenDisk opens a disk for reading and writing. What is at the path must be a plain
// file and no link to one: a guest may have made it. errdefs.ErrInvalidArgument
// otherwise.
func OpenDisk(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("open disk: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("disk %s is no plain file: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// plain is where the content of a qcow2 disk is made; no program makes file systems
// in qcow2 files.
func plain(temp string) string { return temp + ".raw" }

func (b Blank) write(ctx context.Context, path string) error {
	for _, old := range []string{path, plain(path)} { // of an earlier attempt
		if err := removeFile(old); err != nil {
			return err
		}
	}
	if err := b.fill(ctx, path); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if err := os.Chown(path, b.UID, b.GID); err != nil {
		return err
	}
	return syncFile(path)
}

func (b Blank) fill(ctx context.Context, path string) error {
	if b.Format == "qcow2" && b.FileSystem == "" {
		_, err := qemuImg(ctx, "create", "-q", "-f", "qcow2", path, strconv.FormatInt(b.size(), 10))
		return err
	}
	raw := path
	if b.Format == "qcow2" {
		raw = plain(path)
	}
	if err := makeRaw(raw, b.size()); err != nil {
		return err
	}
	if b.FileSystem != "" {
		if err := makeFileSystem(ctx, raw); err != nil {
			return err
		}
	}
	if raw == path {
		return nil
	}
	if _, err := qemuImg(ctx, "convert", "-f", "raw", "-O", "qcow2", raw, path); err != nil {
		return err
	}
	return removeFile(raw)
}

// makeRaw makes a file that is all hole. There must be none: the folder may be one
// that a guest could write to.
func makeRaw(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Close())
}

// makeFileSystem makes ext4, of which the first mount fills in most.
func makeFileSystem(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", "--", path)
	output, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("mke2fs is not installed; install the package e2fsprogs: %w", errdefs.ErrFailedPrecondition)
	case ctx.Err() != nil:
		return fmt.Errorf("mke2fs: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("mke2fs: %w: %s", err, bytes.Join(bytes.Fields(output), []byte(" ")))
	}
	return nil
}

// verify compares an existing disk with what is asked for.
func (b Blank) verify(ctx context.Context, found fs.FileInfo) error {
	size := found.Size()
	if !found.Mode().IsRegular() {
		return fmt.Errorf("disk %s is no file: %w", b.Path, errdefs.ErrAlreadyExists)
	}
	if b.Format == "qcow2" {
		header, err := readInfo(ctx, b.Path)
		if err != nil {
			return fmt.Errorf("look at disk %s: %w", b.Path, err)
		}
		if header.Base != "" {
			return fmt.Errorf("disk %s lies over %s: %w", b.Path, header.Base, errdefs.ErrAlreadyExists)
		}
		size = header.VirtualSize
	}
	if size != b.size() {
		return fmt.Errorf("disk %s has %d bytes, not %d: %w", b.Path, size, b.size(), errdefs.ErrAlreadyExists)
	}
	return nil
}
