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
	for at := 0; at < len(p); {
		part := p[at:min(at+hole, len(p))]
		if !bytes.Equal(part, zeros[:len(part)]) {
			if _, err := w.file.WriteAt(part, w.size); err != nil {
				return at, err
			}
		}
		w.size += int64(len(part))
		at += len(part)
	}
	return len(p), nil
}

// Close gives the file its length, which a hole at the end does not.
func (w *sparseWriter) Close() error {
	return join(w.file.Truncate(w.size), w.file.Close())
}

var _ io.WriteCloser = (*sparseWriter)(nil)
