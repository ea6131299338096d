package imagestore

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

func TestWrappedImages(t *testing.T) {
	qcow, raw := imagetest.QCOW2("wrapped"), imagetest.Raw("wrapped", 3<<20)
	frames := append(zstded(t, raw[:1<<20]), zstded(t, raw[1<<20:])...)
	parallel := slices.Concat(zstdSkipped(4), zstded(t, raw[:1<<20]), zstdSkipped(0), zstded(t, raw[1<<20:]), zstdSkipped(99))
	streams := slices.Concat(xzed(t, raw[:1<<20]), make([]byte, 8), xzed(t, raw[1<<20:]))
	members := append(gzipped(t, raw[:1<<20]), gzipped(t, raw[1<<20:])...)
	for _, tc := range []struct {
		name       string
		sent, disk []byte
		format     Format
	}{
		{"qcow2 in gzip", gzipped(t, qcow), qcow, FormatQCOW2},
		{"qcow2 in xz", xzed(t, qcow), qcow, FormatQCOW2},
		{"qcow2 in zstd", zstded(t, qcow), qcow, FormatQCOW2},
		{"raw in gzip", gzipped(t, raw), raw, FormatRaw},
		{"raw in several gzip members", members, raw, FormatRaw},
		{"raw in xz", xzed(t, raw), raw, FormatRaw},
		{"raw in zstd", zstded(t, raw), raw, FormatRaw},
		{"raw in several zstd frames", frames, raw, FormatRaw},
		{"raw in zstd with frames to skip, as of pzstd", parallel, raw, FormatRaw},
		{"raw in several xz streams with padding", streams, raw, FormatRaw},
		{"raw in zstd with a long window", zstded(t, raw, zstd.WithWindowSize(64<<20)), raw, FormatRaw},
		{"qcow2 in zstd with the longest window", zstdFrame(27, 0, qcow), qcow, FormatQCOW2},
		{"qcow2 in xz with the longest window", xzWindow(xzed(t, qcow), 30), qcow, FormatQCOW2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := serve(t, map[string][]byte{"/d": tc.sent})
			s := openStore(t)
			image := pull(t, s, srv.name("/d")+"@sha256:"+sum(tc.sent))
			stored, err := os.ReadFile(image.Path)
			if err != nil || !bytes.Equal(stored, tc.disk) {
				t.Errorf("stored %d bytes, %v; want the unwrapped %d", len(stored), err, len(tc.disk))
			}
			if image.ID != sum(tc.disk) || image.Format != tc.format || image.Size != int64(len(tc.disk)) {
				t.Errorf("image %+v", image)
			}
			if !strings.HasSuffix(image.Digests[0], sum(tc.sent)) {
				t.Errorf("digests %q; want that of the bytes sent", image.Digests)
			}
			if left := files(t, s); len(left) != 2 {
				t.Errorf("files %q", left)
			}
		})
	}
}

// TestBadImageIsRefusedBeforeItsEnd has servers send the first half of an image only, and
// then nothing: it is unpacked and looked at while it arrives.
func TestBadImageIsRefusedBeforeItsEnd(t *testing.T) {
	bad := noisy(imagetest.Raw("streamed", 1<<20))
	copy(bad, "KDMV")
	for name, sent := range map[string][]byte{"plain": bad, "gzip": gzipped(t, bad), "xz": xzed(t, bad), "zstd": zstded(t, bad)} {
		t.Run(name, func(t *testing.T) {
			h := serveHalting(t, sent)
			s := openStore(t)
			_, err := s.Pull(t.Context(), imageName(h.Server, "/d"), Credentials{})
			checkRefusal(t, err, errdefs.IsInvalidArgument, "a VMDK image")
			wantEmpty(t, s)
		})
	}
}

func TestUnpackedZerosTakeNoRoom(t *testing.T) {
	const size = 64 << 20
	disk := append(imagetest.Raw("sparse", 1<<20), make([]byte, size-1<<20)...)
	copy(disk[32<<20:], "something in the middle")
	srv := serve(t, map[string][]byte{"/d": zstded(t, disk)})
	s := openStore(t)
	image := pull(t, s, srv.name("/d"))
	stored, err := os.ReadFile(image.Path)
	if err != nil || !bytes.Equal(stored, disk) {
		t.Fatalf("stored %d bytes, %v; want %d", len(stored), err, len(disk))
	}
	if usage, err := s.Usage(); err != nil || usage.Bytes > 4<<20 {
		t.Errorf("the store takes %d bytes (%v) for 1 MiB of data", usage.Bytes, err)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	srv := serve(t, map[string][]byte{
		"/qcow2": imagetest.QCOW2("a"), "/xz": []byte("\xfd7zXZ\x00 and so on"),
	})
	s := openStore(t)
	for path, packages := range map[string]string{"/qcow2": "qemu-utils", "/xz": "xz-utils"} {
		_, err := s.Pull(t.Context(), srv.name(path), Credentials{})
		if err == nil || !strings.Contains(err.Error(), "install the packages "+packages) {
			t.Errorf("%s: %v; want the packages to install", path, err)
		}
		wantEmpty(t, s)
	}
}
