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
	copyBuffer  = 256 << 10
	copyBuffers = 4
	// headSize is how much is looked at before the rest is fetched.
	headSize = 36 << 10
	// flushEvery is after how many bytes the kernel is asked to start writing, so
	// that the final sync has little left to do.
	flushEvery = 32 << 20
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
// the way.
func (s *Store) receive(ctx context.Context, d *download) (received, error) {
	in := d.reader(ctx)
	head := make([]byte, headSize)
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return received{}, err
	}
	head = head[:n]
	if err := s.checkHead(head, d.part.validator.Total); err != nil {
		return received{}, err
	}
	all := io.MultiReader(bytes.NewReader(head), in)
	got := received{path: d.part.base + endingBytes}
	got.digest, got.size, err = copyHashed(io.Discard, all, d.part.startWriting())
	if err != nil {
		return received{}, err
	}
	got.id, got.from = got.digest, d.part.validator
	return got, nil
}

// copyHashed copies and returns the SHA-256 and the length of what went through.
// Hashing runs beside reading and writing. tell, if not nil, is called with the
// position now and then.
func copyHashed(w io.Writer, r io.Reader, tell func(int64)) (digest string, size int64, err error) {
	free, full := make(chan []byte, copyBuffers), make(chan []byte, copyBuffers)
	for range copyBuffers {
		free <- make([]byte, copyBuffer)
	}
	hash := sha256.New()
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		for b := range full {
			hash.Write(b)
			free <- b[:copyBuffer]
		}
	}()
	for err == nil {
		b := <-free
		var n int
		n, err = r.Read(b)
		if n > 0 {
			size += int64(n)
			if _, writeErr := w.Write(b[:n]); writeErr != nil {
				err = writeErr
			}
			tell(size)
			full <- b[:n]
		} else {
			free <- b
		}
	}
	close(full)
	<-hashed
	if !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	return hex.EncodeToString(hash.Sum(nil)), size, nil
}

// startWriting makes the kernel write the file out while it grows.
func (p *partial) startWriting() func(int64) {
	var asked int64
	return func(int64) {
		if p.have-asked >= flushEvery {
			// Only a hint: the sync before the file is placed tells of errors.
			_ = unix.SyncFileRange(int(p.file.Fd()), asked, p.have-asked, unix.SYNC_FILE_RANGE_WRITE)
			asked = p.have
		}
	}
}

// checkFree refuses to begin what the file system has no room for.
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
