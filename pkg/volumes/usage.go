package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// statBlock is the unit of st_blocks, whatever the file system's own (stat(2)).
const statBlock = 512

// Usage is what files take up on their file system.
type Usage struct {
	Bytes  int64 // allocated; sparse files count what they hold
	Inodes int64
}

// DiskUsage adds up a folder and all below it. Files that vanish meanwhile do not
// count, and neither does a folder that is not there.
func DiskUsage(dir string) (Usage, error) {
	var usage Usage
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreGone(err)
		}
		usage.Inodes++
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			usage.Bytes += stat.Blocks * statBlock
		}
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("disk usage of %s: %w", dir, err)
	}
	return usage, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
