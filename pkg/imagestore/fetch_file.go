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
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = classed(errNoDisk, "%s is no regular file", p.path)
	}
	if err != nil {
		return nil, join(err, file.Close())
	}
	now := validator{ETag: fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano()), Strong: true, Total: info.Size()}
	switch {
	case have == 0 && p.known.ETag == now.ETag:
		return nil, join(errNotModified, file.Close())
	case have == 0 || now != v:
		return &body{ReadCloser: file, validator: now}, nil
	}
	if _, err := file.Seek(have, io.SeekStart); err != nil {
		return nil, join(err, file.Close())
	}
	return &body{ReadCloser: file, offset: have, validator: v}, nil
}

// openBelow opens the file without following links out of the root it is under.
func (p *filePlace) openBelow() (*os.File, error) {
	for _, dir := range p.roots {
		relative, err := filepath.Rel(dir, p.path)
		if err != nil || relative == ".." || strings.HasPrefix(relative, "../") {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, fmt.Errorf("open image folder: %w", err)
		}
		file, err := root.OpenFile(relative, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block us
		err = join(err, root.Close())
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

func (p *filePlace) close() {}
