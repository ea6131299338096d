package imagestore

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

const manyImages = 5000

// quiet is a store whose log does not disturb the measurement.
func quiet(o *Options) { o.Logger = slog.New(slog.DiscardHandler) }

// BenchmarkList lists 5,000 images. What pulls, root disks and lists by RPC cost,
// tests/bench measures.
func BenchmarkList(b *testing.B) {
	s := openStore(b, quiet)
	var c change
	for i := range manyImages {
		id := sum([]byte(strconv.Itoa(i)))
		name := fmt.Sprintf("%sexample.org/images/disk-%d.qcow2", Prefix, i)
		c.put = append(c.put, &record{
			ID: id, Names: []string{name + ":latest"}, Digests: []string{name + "@sha256:" + id},
			Size: 1 << 30, VirtualSize: 1 << 33, Format: FormatQCOW2, PulledAt: time.Now(),
		})
	}
	if err := s.index.apply(c); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if images, err := s.List(); err != nil || len(images) != manyImages {
			b.Fatalf("%d images, %v", len(images), err)
		}
	}
}

// BenchmarkHash is the speed of the pipeline without network and disk.
func BenchmarkHash(b *testing.B) {
	content := imagetest.Raw("hash", 64<<20)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		_, _, err := copyHashed(io.Discard, bytes.NewReader(content), func(int64) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
}
