package translation

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// maxFile is the largest translation file that is read, in bytes.
const maxFile = 1 << 20

// Source is the translation files of some folders.
type Source struct {
	dirs []string

	mu       sync.Mutex // guards what follows
	read     bool
	seen     string // state of the files when table was made
	table    *Table
	problems []error
}

// NewSource makes a source of the files in dirs; a folder may be missing.
func NewSource(dirs []string) *Source { return &Source{dirs: dirs} }

// Table returns the translations as they are now. changed tells that the files
// were read (again); problems are then what is wrong with some of them, and
// those are not used.
func (s *Source) Table() (table *Table, problems []error, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths, seen, problems := s.list()
	if s.read && seen == s.seen {
		return s.table, s.problems, false
	}
	var files []*file
	for _, path := range paths {
		f, err := load(path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		files = append(files, f)
	}
	s.read, s.seen, s.table, s.problems = true, seen, newTable(files), problems
	return s.table, s.problems, true
}

// list returns the files in order, and what changes when one of them does.
func (s *Source) list() (paths []string, seen string, problems []error) {
	var state strings.Builder
	for _, dir := range s.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fmt.Errorf("read image translations: %w", err))
			fmt.Fprintln(&state, err)
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			info, err := os.Stat(path) // ConfigMap volumes are full of links
			if strings.HasPrefix(entry.Name(), ".") || err != nil || !info.Mode().IsRegular() {
				continue
			}
			paths = append(paths, path)
			fmt.Fprintln(&state, path, identity(info))
		}
	}
	return paths, state.String(), problems
}

// identity changes with a file's content, and when another takes its place. The time of
// the last change to the inode counts, because that of the content can be set at will.
func identity(info fs.FileInfo) string {
	inode, _ := info.Sys().(*syscall.Stat_t) // always, on Linux
	return fmt.Sprint(info.Size(), inode.Ino, inode.Mtim, inode.Ctim)
}

func load(path string) (*file, error) {
	opened, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read image translation: %w", err)
	}
	defer func() { _ = opened.Close() }() // it is only read
	raw, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read image translation: %w", err)
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("image translation file %s is longer than %d bytes", path, maxFile)
	}
	return parse(path, raw)
}
