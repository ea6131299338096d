package imagestore

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what the store takes of its file system.
type Usage struct {
	Bytes      int64 // allocated, of all files and folders of the store
	Inodes     int64
	Mountpoint string // of the file system that the store lies on
	At         time.Time
}

// blockSize is the unit of st_blocks, whatever the file system uses.
const blockSize = 512

// Usage counts the store's own files, partial downloads and images that are only
// kept for their holders included.
func (s *Store) Usage() (Usage, error) {
	u := Usage{At: s.now()}
	err := filepath.WalkDir(s.paths.dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreGone(err)
		}
		u.Inodes++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			u.Bytes += st.Blocks * blockSize
		}
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure image store: %w", err)
	}
	u.Mountpoint, err = mountpoint(s.paths.dir)
	return u, err
}

// mountpoint climbs from a folder as long as it stays in the same mount.
func mountpoint(dir string) (string, error) {
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
