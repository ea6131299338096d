package imagestore

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func TestCopyHashed(t *testing.T) {
	for _, size := range []int{0, 1, copyBuffer - 1, copyBuffer, 3*copyBuffer + 7, 3 * copyBuffers * copyBuffer} {
		content := imagetest.Raw("copy", size)
		var out bytes.Buffer
		var last int64
		digest, n, err := copyHashed(&out, iotest.HalfReader(bytes.NewReader(content)), func(at int64) error {
			if at < last {
				t.Errorf("position went from %d to %d", last, at)
			}
			last = at
			return nil
		})
		if err != nil || digest != sum(content) || n != int64(size) || last != n || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("%d bytes: digest %s, size %d, position %d, err %v", size, digest, n, last, err)
		}
	}
}

// endless is a source that only a failing writer or hook ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// fullAfter is a file system that fills up.
type fullAfter struct{ left int }

func (w *fullAfter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

func TestCopyHashedEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	fine := func(int64) error { return nil }
	for name, tc := range map[string]struct {
		w     io.Writer
		r     io.Reader
		moved func(int64) error
		is    func(error) bool
	}{
		"reading": {io.Discard, io.MultiReader(bytes.NewReader(make([]byte, 5*copyBuffer)), iotest.ErrReader(broken)), fine, func(err error) bool { return errors.Is(err, broken) }},
		"writing": {&fullAfter{5 * copyBuffer}, endless{}, fine, errdefs.IsResourceExhausted},
		"room":    {io.Discard, endless{}, func(int64) error { return broken }, func(err error) bool { return errors.Is(err, broken) }},
	} {
		if _, _, err := copyHashed(tc.w, tc.r, tc.moved); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
