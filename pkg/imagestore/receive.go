package imagestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// headSize is how much is looked at before the rest is fetched.
	headSize = 36 << 10
	// flushEvery is after how many bytes a growing file is looked after.
	flushEvery = 2 << 20
)

// received is a complete file in the partial folder.
type received struct {
	path   string // of the file with the disk
	id     string // SHA-256 of that file
	size   int64
	digest string // SHA-256 of the bytes as they were sent
	from   validator
}

// receive fetches all of a connected download into the partial folder, hashing on
// the way and unwrapping if it is compressed, or a layer that may be.
func (s *Store) receive(ctx context.Context, d *download, layer bool) (received, error) {
	in := d.reader(ctx)
	head, err := peek(in)
	if err != nil {
		return received{}, err
	}
	all := io.MultiReader(bytes.NewReader(head), in)
	w := wrapping(head)
	if w == wrapperNone && (!layer || !isTar(head)) {
		return s.receivePlain(d, head, all)
	}
	_, d.passing = d.place.(*filePlace)
	d.wrapped = true
	hash := sha256.New()
	ahead := newReadAhead(io.TeeReader(all, hash))
	got, err := s.receiveWrapped(ctx, d, w, ahead, layer)
	ahead.stop()
	if err != nil {
		return received{}, err
	}
	got.digest, got.from = hex.EncodeToString(hash.Sum(nil)), d.part.validator
	return got, nil
}

// peek reads as much as is looked at before the rest.
func peek(r io.Reader) ([]byte, error) {
	head := make([]byte, headSize)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return head[:n], nil
}

// receivePlain stores bytes as they come: the partial file is the image.
func (s *Store) receivePlain(d *download, head []byte, all io.Reader) (received, error) {
	if err := s.checkHead(head, d.part.validator.Total); err != nil {
		return received{}, err
	}
	got := received{path: d.part.base + endingBytes}
	var err error
	limited := &limitedReader{r: all, left: s.opts.MaxSize, limit: s.opts.MaxSize}
	got.digest, got.size, err = copyHashed(io.Discard, limited, s.growing(d.part.file))
	got.id, got.from = got.digest, d.part.validator
	return got, err
}

// receiveWrapped stores the unwrapped disk beside the partial file.
func (s *Store) receiveWrapped(ctx context.Context, d *download, w wrapper, sent io.Reader, layer bool) (got received, err error) {
	plain, err := s.unwrap(ctx, w, sent)
	if err != nil {
		d.cancel()
		return received{}, err
	}
	defer func() {
		if err != nil {
			d.cancel()        // else a byte that may never come would be awaited
			_ = plain.Close() // all that it could say has been said
		} else {
			err = plain.Close()
		}
	}()
	head, err := peek(plain)
	if err != nil {
		return received{}, err
	}
	got.path = d.part.unpacked()
	content := io.MultiReader(bytes.NewReader(head), plain)
	if layer && isTar(head) {
		got.id, got.size, err = s.unpackLayer(got.path, content)
	} else {
		got.id, got.size, err = s.unpackDisk(got.path, head, content)
	}
	if err != nil {
		return received{}, err
	}
	// The digest is that of all bytes, also of those that nothing needed.
	_, err = io.Copy(io.Discard, sent)
	return got, err
}

// unpackDisk writes the disk whose first bytes are head to a new file.
func (s *Store) unpackDisk(path string, head []byte, all io.Reader) (id string, size int64, err error) {
	if err := s.checkHead(head, -1); err != nil {
		return "", 0, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileModePrivate)
	if err != nil {
		return "", 0, writeError("unpack image", err)
	}
	sparse := &sparseWriter{file: file}
	defer func() {
		if closeErr := sparse.Close(); closeErr != nil {
			err = join(err, writeError("unpack image", closeErr))
		}
	}()
	limited := &limitedReader{r: all, left: s.opts.MaxSize, limit: s.opts.MaxSize}
	return copyHashed(sparse, limited, s.growing(file))
}

// limitedReader fails, instead of ending, at its limit.
type limitedReader struct {
	r           io.Reader
	left, limit int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, classed(errdefs.ErrResourceExhausted, "the image has more than %d bytes when unpacked; that is the limit", l.limit)
	}
	return n, err
}

// growing looks after a file while it grows: there must be room for more, and the
// kernel writes it out, so that the final sync has little left to do.
func (s *Store) growing(file *os.File) func(int64) error {
	var seen int64
	return func(size int64) error {
		if size-seen < flushEvery {
			return nil
		}
		// Only a hint: the sync before the file is placed tells of errors.
		_ = unix.SyncFileRange(int(file.Fd()), seen, size-seen, unix.SYNC_FILE_RANGE_WRITE)
		seen = size
		return s.checkFree(0)
	}
}

// makeRoom refuses to begin what the file system has no room for, even without
// the partial downloads that nobody waits for.
func (s *Store) makeRoom(need int64) error {
	err := s.checkFree(need)
	if err == nil {
		return nil
	}
	if err := s.dropPartials(0); err != nil {
		return err
	}
	return s.checkFree(need)
}

// checkFree tells whether the file system has room for so many bytes more.
func (s *Store) checkFree(need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.paths.dir, &st); err != nil {
		return fmt.Errorf("ask for free space: %w", &os.PathError{Op: "statfs", Path: s.paths.dir, Err: err})
	}
	free := int64(st.Bavail) * st.Bsize //nolint:gosec // G115: fits, or there is room enough
	if need+s.opts.MinFree > free {
		return classed(errdefs.ErrResourceExhausted, "no room for the image: %d bytes are needed and %d must stay free, but the file system of %s has %d; free some space",
			need, s.opts.MinFree, s.paths.dir, free)
	}
	return nil
}
