package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// identity tells files apart, whatever they are called.
type identity struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Born   int64  `json:"born"` // nanoseconds since 1970; 0 where the file system has no birth time
}

// identify returns the identity and size of an open file.
func identify(f *os.File) (identity, int64, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	return statIdentity(f.Name(), st, err)
}

// identifyPath is identify for a name; links are not followed.
func identifyPath(path string) (identity, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	id, _, err := statIdentity(path, st, err)
	return id, err
}

func statIdentity(path string, st unix.Statx_t, err error) (identity, int64, error) {
	if err != nil {
		return identity{}, 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	id := identity{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, int64(st.Size), nil //nolint:gosec // sizes are below 2^63
}

// stateVersion is raised when older programs could not read the file any more.
const stateVersion = 1

// state is how far copying has come.
type state struct {
	Version int      `json:"version"`
	Console identity `json:"console"` // the file being copied
	Offset  int64    `json:"offset"`  // bytes of it that are in the log
	Log     identity `json:"log"`
	LogSize int64    `json:"logSize"` // its size when Offset was true
}

// loadState returns the zero state if there is no file. A file that cannot be
// understood yields ErrDataLoss.
func loadState(path string) (state, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("load console state: %w", err)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("load console state %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	if s.Version != stateVersion || s.Offset < 0 || s.LogSize < 0 {
		return state{}, fmt.Errorf("load console state %s: version %d is not %d, or a number is negative: %w",
			path, s.Version, stateVersion, errdefs.ErrDataLoss)
	}
	return s, nil
}

// save replaces the file in one step. It is not synced: when the machine goes
// down the guest does too, and a log with a few lines twice is no harm then.
func (s state) save(path string) error {
	s.Version = stateVersion
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save console state: %w", err)
	}
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return fmt.Errorf("save console state: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("save console state: %w", err)
	}
	return nil
}
