package imagestore

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// pacedPlace sends content, and takes its time for each byte. Each of its connections
// ends after a number of bytes.
type pacedPlace struct {
	content []byte
	perByte time.Duration
	most    int
	asked   []int64 // offsets
}

func (p *pacedPlace) open(_ context.Context, have int64, _ validator) (*body, error) {
	p.asked = append(p.asked, have)
	rest := p.content[have:]
	sent := rest[:min(len(rest), p.most)]
	read := func(b []byte) (int, error) {
		n := copy(b, sent)
		sent = sent[n:]
		time.Sleep(time.Duration(n) * p.perByte)
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	return &body{
		ReadCloser: io.NopCloser(readerFunc(read)), offset: have,
		validator: validator{ETag: `"v1"`, Strong: true, Total: int64(len(p.content))},
	}, nil
}

func (p *pacedPlace) close() {}

// TestPartialFileEndsWhereItIsOfNoUse reads downloads faster and slower than they come,
// over connections that break, and goes on with what was kept.
func TestPartialFileEndsWhereItIsOfNoUse(t *testing.T) {
	const size, chunk = 3 * paceWindow, copyBuffer
	content := imagetest.Raw("pace", size)
	for name, tc := range map[string]struct {
		wrapped          bool
		perByte, perRead time.Duration // of the place, and of the reader for each chunk
		kept             int64
	}{
		"wrapped, from a slow place": {true, time.Microsecond, chunk * time.Microsecond / 2, size},
		"wrapped, from a fast place": {true, time.Microsecond, chunk * time.Microsecond * 2, paceWindow - chunk},
		"plain, from a fast place":   {false, time.Microsecond, chunk * time.Microsecond * 2, size},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			synctest.Test(t, func(t *testing.T) {
				from := &pacedPlace{content: content, perByte: tc.perByte, most: size - size/4}
				part := readPaced(t, s, from, tc.wrapped, tc.perRead)
				if err := part.close(true); err != nil || part.have != tc.kept {
					t.Errorf("%d bytes were kept, want %d; %v", part.have, tc.kept, err)
				}
				if len(from.asked) != 2 || from.asked[1] != int64(from.most) {
					t.Errorf("asked for bytes from %d on; want 0 and %d, where the connection broke", from.asked, from.most)
				}
				again := &pacedPlace{content: content, most: size}
				part = readPaced(t, s, again, tc.wrapped, 0)
				if err := part.close(false); err != nil || again.asked[0] != tc.kept {
					t.Errorf("the next pull asked for bytes from %d on, want %d; %v", again.asked[0], tc.kept, err)
				}
			})
		})
	}
}

// readPaced reads all of a place, with a rest after each chunk, and returns the partial
// file.
func readPaced(t *testing.T, s *Store, from *pacedPlace, wrapped bool, rest time.Duration) *partial {
	t.Helper()
	part, err := openPartial(s.paths, "key")
	if err != nil {
		t.Fatal(err)
	}
	d := &download{
		place: from, part: part, store: s, transfer: &transfer{fetched: prometheus.NewCounter(prometheus.CounterOpts{})},
		told: s.now(), wrapped: wrapped,
	}
	if err := d.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for chunk := make([]byte, copyBuffer); ; {
		n, err := d.read(t.Context(), chunk)
		all = append(all, chunk[:n]...)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		time.Sleep(rest)
	}
	if err := d.disconnect(); err != nil {
		t.Error(err)
	}
	if sum(all) != sum(from.content) {
		t.Errorf("%d bytes that are not those of the place", len(all))
	}
	if kept, err := os.ReadFile(part.base + endingBytes); err != nil || sum(kept) != sum(from.content[:part.have]) {
		t.Errorf("the partial file is not the beginning of the content; %v", err)
	}
	return part
}
