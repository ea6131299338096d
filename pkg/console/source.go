package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxBackups is how many rotated files are looked for; virtlogd keeps 3 unless
// max_backups in virtlogd.conf says otherwise.
const maxBackups = 64

// source reads a console across its rotations. It belongs to one goroutine.
type source struct {
	path string
	file *os.File // nil until the console exists
	id   identity
	at   int64 // offset of the next byte to read
}

// errOutputLost says that output was rotated away, or cut off, before it was read.
var errOutputLost = errors.New("console output was rotated away or cut off before it was copied")

// resume opens the file in which copying stopped, or the oldest one there is. It
// returns errOutputLost, with the source open all the same, if the former is gone.
func (s *source) resume(id identity, offset int64) error {
	for {
		files, err := s.list()
		if err != nil || len(files) == 0 {
			return err
		}
		at := indexOf(files, id)
		err = s.open(files[max(at, 0)])
		switch {
		case errors.Is(err, errRotated):
			continue
		case err != nil:
			return err
		case at >= 0:
			s.at = offset
		case id != (identity{}):
			return errOutputLost
		}
		return nil
	}
}

// named is a file that was seen under a name.
type named struct {
	path string
	id   identity
}

func indexOf(files []named, id identity) int {
	return slices.IndexFunc(files, func(f named) bool { return f.id == id })
}

// list returns the console's files, oldest first. A rotation in between makes a
// file appear twice, so it looks until two looks agree.
func (s *source) list() ([]named, error) {
	before, err := s.look()
	for err == nil {
		var now []named
		if now, err = s.look(); slices.Equal(before, now) {
			return now, err
		}
		before = now
	}
	return nil, err
}

// look goes from the newest name to the oldest, the way that files move, so that
// it misses none. In the middle of a rotation one name is free, never two.
func (s *source) look() ([]named, error) {
	var files []named
	free := 0
	for n := -1; n < maxBackups && free < 2; n++ {
		path := s.path
		if n >= 0 {
			path += "." + strconv.Itoa(n)
		}
		id, err := identifyPath(path)
		if errors.Is(err, fs.ErrNotExist) {
			free++
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find console: %w", err)
		}
		free = 0
		files = append(files, named{path: path, id: id})
	}
	slices.Reverse(files)
	return files, nil
}

// open switches to another file, from its start.
func (s *source) open(f named) error {
	file, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open console %s: %w", f.path, errRotated)
	}
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	id, _, err := identify(file)
	if err == nil && id != f.id {
		err = fmt.Errorf("open console %s: %w", f.path, errRotated)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if err := s.close(); err != nil {
		return errors.Join(err, file.Close())
	}
	s.file, s.id, s.at = file, id, 0
	return nil
}

// errRotated says that names have changed under our feet; trying again helps.
var errRotated = errors.New("it was rotated just now")

func (s *source) close() error {
	if s.file == nil {
		return nil
	}
	file := s.file
	s.file = nil
	return file.Close()
}

// read fills buf with what comes next in the current file; 0 bytes mean that there
// is no more at the moment.
func (s *source) read(buf []byte) (int, error) {
	if s.file == nil {
		return 0, nil
	}
	n, err := s.file.ReadAt(buf, s.at)
	s.at += int64(n)
	if n > 0 || errors.Is(err, io.EOF) {
		return n, nil
	}
	return 0, fmt.Errorf("read console: %w", err)
}

// shrunk tells whether the file has become shorter than what was read of it, and
// starts again at its beginning if so.
func (s *source) shrunk() (bool, error) {
	if s.file == nil {
		return false, nil
	}
	_, size, err := identify(s.file)
	if err != nil || size >= s.at {
		return false, err
	}
	s.at = 0
	return true, nil
}

// newer returns the file that follows the current one, if there is one. When the
// current one is no longer among them the answer is the oldest, and lost is true.
func (s *source) newer() (next named, lost bool, err error) {
	files, err := s.list()
	if err != nil || len(files) == 0 {
		return named{}, false, err
	}
	if s.file == nil {
		return files[0], false, nil
	}
	at := indexOf(files, s.id)
	switch {
	case at < 0:
		return files[0], true, nil
	case at == len(files)-1:
		return named{}, false, nil
	default:
		return files[at+1], false, nil
	}
}

// written tells whether a process has the current file open for writing. The
// kernel grants a read lease only if none has.
func (s *source) written() bool {
	if s.file == nil {
		return false
	}
	fd := s.file.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	_, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
	return err != nil
}
