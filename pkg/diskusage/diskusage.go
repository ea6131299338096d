// Package diskusage measures what files take of their file system, and finds where
// that is mounted. It keeps no state, and its functions may be called at any time by
// anybody; other programs may change the files meanwhile.
package diskusage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Usage is what files take on the host.
type Usage struct {
	Bytes  uint64 // allocated, which for sparse files is less than their size
	Inodes uint64
}

// blockUnit is what the kernel counts allocated blocks in, in bytes, whatever the
// file system's block size.
const blockUnit = 512

// Measure adds up a file or a folder with all in it. Files that vanish meanwhile do
// not count, and an absent path yields fs.ErrNotExist; a file with several names
// counts once for each.
func Measure(path string) (Usage, error) {
	return measure(path, func(string, fs.FileInfo) (uint64, error) { return 0, nil })
}

// MeasureOwn is Measure without the blocks that files share with others: what would be
// free if path was removed. Of a disk that was cloned from an image this is only what
// the guest has written.
func MeasureOwn(path string) (Usage, error) {
	can, err := canShare(path)
	if err != nil {
		return Usage{}, fmt.Errorf("measure disk usage: %w", err)
	}
	if !can {
		return Measure(path)
	}
	return measure(path, func(name string, info fs.FileInfo) (uint64, error) {
		if !info.Mode().IsRegular() {
			return 0, nil
		}
		return shared(name)
	})
}

// measure adds up all below path without what except says of each.
func measure(path string, except func(string, fs.FileInfo) (uint64, error)) (Usage, error) {
	var total Usage
	err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name != path {
			return nil
		}
		if err != nil {
			return err
		}
		own, err := usageOf(name, entry, except)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		total.Bytes += own.Bytes
		total.Inodes += own.Inodes
		return err
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure disk usage: %w", err)
	}
	return total, nil
}

func usageOf(name string, entry fs.DirEntry, except func(string, fs.FileInfo) (uint64, error)) (Usage, error) {
	info, err := entry.Info()
	if err != nil {
		return Usage{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Usage{}, nil
	}
	bytes := uint64(stat.Blocks) * blockUnit //nolint:gosec // not negative
	less, err := except(name, info)
	if err != nil {
		return Usage{}, err
	}
	return Usage{Bytes: bytes - min(less, bytes), Inodes: 1}, nil
}

// Mountpoint is where the file system is mounted that a folder lies on: the highest
// folder above it in the same mount.
func Mountpoint(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("find mount point: %w", err)
	}
	mount, err := mountID(dir)
	if err != nil {
		return "", err
	}
	for dir != "/" {
		parent := filepath.Dir(dir)
		id, err := mountID(parent)
		if err != nil {
			return "", err
		}
		if id != mount {
			break
		}
		dir = parent
	}
	return dir, nil
}

func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("find mount point: %w", &fs.PathError{Op: "statx", Path: path, Err: err})
	}
	return st.Mnt_id, nil
}
