package imagestore

import (
	"bytes"
	"io"
	"os"
)

// hole is the length of zeros that is left out of a file, in bytes.
const hole = 64 << 10

var zeros = make([]byte, hole)

// sparseWriter writes a new file front to back and leaves out long runs of zeros:
// unpacked raw disks consist mostly of them.
type sparseWriter struct {
	file *os.File
	size int64
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	from := 0 // of what is to be written
	for at := 0; at < len(p); {
		part := p[at:min(at+hole, len(p))]
		if bytes.Equal(part, zeros[:len(part)]) {
			if err := w.put(p, from, at); err != nil {
				return from, err
			}
			from = at + len(part)
		}
		at += len(part)
	}
	if err := w.put(p, from, len(p)); err != nil {
		return from, err
	}
	w.size += int64(len(p))
	return len(p), nil
}

// put writes a part of p to its place.
func (w *sparseWriter) put(p []byte, from, to int) error {
	if from == to {
		return nil
	}
	_, err := w.file.WriteAt(p[from:to], w.size+int64(from))
	return err
}

// Close gives the file its length, which a hole at the end does not.
func (w *sparseWriter) Close() error {
	return join(w.file.Truncate(w.size), w.file.Close())
}

var _ io.WriteCloser = (*sparseWriter)(nil)
