package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// filePlace copies from a folder of this node. Only translation files can name
// one, and only below the configured roots.
type filePlace struct {
	path  string
	roots []string
	known origin
}

func (p *filePlace) open(_ context.Context, have int64, v validator) (*body, error) {
	file, err := p.openBelow()
	if err != nil {
		return nil, err
	}
	now, err := p.validate(file)
	if err != nil {
		return nil, join(err, file.Close())
	}
	steady := &steadyFile{File: file, place: p, state: now}
	switch {
	case have == 0 && p.known.ETag == now.ETag:
		return nil, join(errNotModified, file.Close())
	case have == 0 || now != v:
		return &body{ReadCloser: steady, validator: now}, nil
	}
	if _, err := file.Seek(have, io.SeekStart); err != nil {
		return nil, join(err, file.Close())
	}
	return &body{ReadCloser: steady, offset: have, validator: v}, nil
}

// validate tells the state of an open file. The time of the last change to its inode
// counts, because that of the content can be set at will.
func (p *filePlace) validate(file *os.File) (validator, error) {
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = classed(errNoDisk, "%s is no regular file", p.path)
	}
	if err != nil {
		return validator{}, err
	}
	inode, _ := info.Sys().(*syscall.Stat_t) // always, on Linux
	tag := fmt.Sprint(info.Size(), "-", inode.Ino, "-", inode.Mtim.Nano(), "-", inode.Ctim.Nano())
	return validator{ETag: tag, Strong: true, Total: info.Size()}, nil
}

// steadyFile fails, instead of ending, if the file changed while it was read.
type steadyFile struct {
	*os.File

	place *filePlace
	state validator
}

func (f *steadyFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	now, err := f.place.validate(f.File)
	switch {
	case err != nil:
		return n, err
	case now != f.state:
		return n, classed(errTemporary, "file %s changed while it was read", f.place.path)
	}
	return n, io.EOF
}

// openBelow opens the file without following links out of the root it is under.
func (p *filePlace) openBelow() (*os.File, error) {
	for _, dir := range p.roots {
		relative, err := filepath.Rel(dir, p.path)
		if err != nil || relative == ".." || strings.HasPrefix(relative, "../") {
			continue
		}
		file, err := openIn(dir, relative)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, classed(errdefs.ErrNotFound, "there is no file %s", p.path)
		}
		if err != nil {
			return nil, classed(errdefs.ErrPermissionDenied, "file %s cannot be read: %w", p.path, err)
		}
		return file, nil
	}
	return nil, classed(errdefs.ErrPermissionDenied, "file %s is in none of the folders from which images may be taken", p.path)
}

func openIn(dir, relative string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	file, err := root.OpenFile(relative, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block us
	return file, join(err, root.Close())
}

func (p *filePlace) close() {}
