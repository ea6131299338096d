package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Usage is what files take on the host.
type Usage struct {
	Bytes  uint64 // allocated, which for sparse files is less than their size
	Inodes uint64
}

// blockUnit is what the kernel counts allocated blocks in, in bytes, whatever the
// file system's block size.
const blockUnit = 512

// MeasureUsage adds up a file or a folder with all in it. Files that vanish
// meanwhile do not count; a file with several names counts once for each.
func MeasureUsage(path string) (Usage, error) {
	var total Usage
	err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name != path {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			total.Bytes += uint64(stat.Blocks) * blockUnit //nolint:gosec // not negative
			total.Inodes++
		}
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure disk usage: %w", err)
	}
	return total, nil
}
