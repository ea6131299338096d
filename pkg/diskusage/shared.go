package diskusage

import (
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What <linux/fiemap.h> says.
const (
	ioctlFiemap   = 0xc020660b // FS_IOC_FIEMAP
	extentLast    = 1          // FIEMAP_EXTENT_LAST
	extentShared  = 0x2000     // FIEMAP_EXTENT_SHARED
	extentsAtOnce = 256
)

type extent struct {
	logical, physical, length uint64 // bytes
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type extentMap struct {
	start, length uint64
	flags, mapped uint32
	count, _      uint32
	extents       [extentsAtOnce]extent
}

// canShare tells whether files on the file system of path can have blocks in common.
func canShare(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch st.Type {
	case unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}

// shared is how many bytes of a file other files have, too.
func shared(path string) (uint64, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }() // nothing was written through it
	var total uint64
	for m := (extentMap{count: extentsAtOnce}); ; {
		m.length = ^uint64(0) - m.start
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), ioctlFiemap, uintptr(unsafe.Pointer(&m))) //nolint:gosec // the kernel fills in at most count extents
		runtime.KeepAlive(file)
		if errno != 0 {
			return 0, fmt.Errorf("list extents: %w", &fs.PathError{Op: "fiemap", Path: path, Err: errno})
		}
		if m.mapped == 0 {
			return total, nil
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentShared != 0 {
				total += e.length
			}
			if e.flags&extentLast != 0 {
				return total, nil
			}
			m.start = e.logical + e.length
		}
	}
}
