package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// noReflink are the answers of file systems that cannot share blocks, or not between
// these two files.
var noReflink = []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS}

// CloneRoot makes a root disk that shares its blocks with a raw image until they are
// written (ioctl_ficlone(2)), and is raw itself: the guest's reads and writes pass
// through no overlay. It tells whether there is such a disk now; if not, because of the
// image's format or the file system, CreateRoot can make one. A disk that is at the
// path already is left alone, with what the guest has written; ErrAlreadyExists says
// that it has another size.
func CloneRoot(r Root) (bool, error) {
	if err := r.validate(); err != nil {
		return false, err
	}
	if r.BaseFormat != formatRaw {
		return false, nil
	}
	switch info, err := os.Lstat(r.Path); {
	case err == nil && (info.Size() != r.size() || !info.Mode().IsRegular()):
		return false, fmt.Errorf("root disk %s is there with %d bytes, not %d: %w", r.Path, info.Size(), r.size(), errdefs.ErrAlreadyExists)
	case err == nil:
		return true, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("clone root disk: %w", err)
	}
	temp := unfinished(r.Path)
	err := r.clone(temp)
	if err == nil {
		err = os.Rename(temp, r.Path)
	}
	if err == nil {
		return true, nil
	}
	err = errors.Join(err, removeFile(temp))
	if slices.ContainsFunc(noReflink, func(no error) bool { return errors.Is(err, no) }) {
		return false, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return false, fmt.Errorf("clone root disk %s: %w", r.Path, err)
}

func (r Root) clone(path string) error {
	if err := removeFile(path); err != nil { // of an earlier attempt
		return err
	}
	from, err := os.Open(r.Base)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // nothing was written through it
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		return errors.Join(&fs.PathError{Op: "share blocks with", Path: r.Base, Err: err}, to.Close())
	}
	err = to.Truncate(r.size())
	if err == nil {
		err = to.Chown(r.UID, r.GID)
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}
