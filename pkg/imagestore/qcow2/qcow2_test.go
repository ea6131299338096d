package qcow2_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
	"github.com/ambipod/ambipod/pkg/imagestore/qcow2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 1 << 40

func check(image []byte) (qcow2.Header, error) {
	return qcow2.Check(bytes.NewReader(image), int64(len(image)), limit)
}

func TestCheckAcceptsWhatQEMUMakes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		options string
		want    qcow2.Header
	}{
		{"v3", "compat=1.1", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 64 << 10}},
		{"v2", "compat=0.10", qcow2.Header{Version: 2, VirtualSize: 64 << 20, ClusterSize: 64 << 10}},
		{"smallest clusters", "cluster_size=512", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 512}},
		{"largest clusters", "cluster_size=2M", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 2 << 20}},
		{"zstd", "compression_type=zstd", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 64 << 10, Zstd: true}},
		{"extended L2", "extended_l2=on,cluster_size=128k", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 128 << 10}},
		{"narrow refcounts", "refcount_bits=1", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 64 << 10}},
		{"full metadata", "preallocation=metadata", qcow2.Header{Version: 3, VirtualSize: 64 << 20, ClusterSize: 64 << 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", tc.options, image, "64M")
			content, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			got, err := check(content)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if got, err = qcow2.CheckHeader(content[:512], limit); err != nil || got != tc.want {
				t.Errorf("CheckHeader() = %v, %v", got, err)
			}
		})
	}
}

func TestCheckAcceptsSnapshots(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	qemuImg(t, "create", "-q", "-f", "qcow2", image, "64M")
	qemuImg(t, "snapshot", "-c", "one", image)
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := check(content); err != nil || got.Snapshots != 1 {
		t.Errorf("Check() = %+v, %v; want one snapshot", got, err)
	}
}

func TestCheckAcceptsBitmaps(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	qemuImg(t, "create", "-q", "-f", "qcow2", image, "64M")
	qemuImg(t, "bitmap", "--add", image, "one")
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(content[:512], []byte("\x23\x85\x28\x75")) {
		t.Fatal("qemu-img wrote no extension about bitmaps")
	}
	if _, err := check(content); err != nil {
		t.Error(err)
	}
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("qemu-img is not installed; install the package qemu-utils")
	}
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// hostile are images of which each would do harm, and the reason to be given.
func hostile() map[string]struct {
	image []byte
	why   string
} {
	good := imagetest.QCOW2("good")
	with := func(f imagetest.Field, v uint64) []byte { return imagetest.With(good, f, v) }
	v2 := with(imagetest.Version, 2)
	type bad = struct {
		image []byte
		why   string
	}
	return map[string]bad{
		"empty":                        {nil, "does not begin with"},
		"magic only":                   {good[:4], "does not begin with"},
		"cut in the header":            {good[:71], "does not begin with"},
		"cut in the v3 header":         {good[:100], "cut short"},
		"cut before the tables":        {good[:4096], "outside the file"},
		"cut in the L1 table":          {good[:3*65536], "outside the file"},
		"other magic":                  {bytes.Replace(good, []byte("QFI"), []byte("QFX"), 1), "does not begin with"},
		"version 1":                    {with(imagetest.Version, 1), "version is 1"},
		"version 4":                    {with(imagetest.Version, 4), "version is 4"},
		"backing file":                 {imagetest.With(with(imagetest.BackingOffset, 200), imagetest.BackingSize, 11), "backing file"},
		"backing file of v2":           {imagetest.With(v2, imagetest.BackingOffset, 200), "backing file"},
		"backing file without length":  {with(imagetest.BackingOffset, 1), "backing file"},
		"AES encryption":               {with(imagetest.Encryption, 1), "encrypted"},
		"LUKS encryption":              {with(imagetest.Encryption, 2), "encrypted"},
		"LUKS extension":               {imagetest.Extension(good, 0x0537be77), "encrypted"},
		"external data":                {with(imagetest.Incompatible, 1<<2), "external file"},
		"raw external data":            {with(imagetest.Autoclear, 1<<1), "external file"},
		"external data extension":      {imagetest.Extension(good, 0x44415441), "external data file"},
		"dirty":                        {with(imagetest.Incompatible, 1), "dirty"},
		"corrupt":                      {with(imagetest.Incompatible, 2), "corrupt"},
		"unknown feature":              {with(imagetest.Incompatible, 1<<5), "unknown features"},
		"highest unknown feature":      {with(imagetest.Incompatible, 1<<63), "unknown features"},
		"clusters of 256 bytes":        {with(imagetest.ClusterBits, 8), "cluster size"},
		"clusters of 4 MiB":            {with(imagetest.ClusterBits, 22), "cluster size"},
		"clusters of 2^4G bytes":       {with(imagetest.ClusterBits, 0xffffffff), "cluster size"},
		"extended L2, small clusters":  {imagetest.With(with(imagetest.Incompatible, 1<<4), imagetest.ClusterBits, 12), "16 KiB"},
		"refcounts too wide":           {with(imagetest.RefcountOrder, 7), "refcount order"},
		"header too short":             {with(imagetest.HeaderLength, 80), "header length"},
		"header of odd length":         {with(imagetest.HeaderLength, 105), "header length"},
		"header of 4 GiB":              {with(imagetest.HeaderLength, 0xfffffff8), "header length"},
		"unknown compression":          {imagetest.With(with(imagetest.Incompatible, 1<<3), imagetest.CompressionType, 9), "compression type"},
		"compression without its bit":  {with(imagetest.CompressionType, 1), "contradicts"},
		"no virtual size":              {with(imagetest.VirtualSize, 0), "virtual size"},
		"odd virtual size":             {with(imagetest.VirtualSize, 1000), "virtual size"},
		"virtual size over the limit":  {with(imagetest.VirtualSize, limit+512), "at most"},
		"virtual size of 16 EiB":       {with(imagetest.VirtualSize, 1<<64-512), "at most"},
		"L1 table too small":           {with(imagetest.VirtualSize, 1<<30), "L1 table"},
		"no L1 table":                  {with(imagetest.L1Entries, 0), "L1 table"},
		"L1 table of 32 GiB":           {with(imagetest.L1Entries, 0xffffffff), "L1 table"},
		"L1 table in the header":       {with(imagetest.L1Offset, 0), "L1 table"},
		"L1 table at an odd place":     {with(imagetest.L1Offset, 3*65536+8), "L1 table"},
		"L1 table behind the end":      {with(imagetest.L1Offset, 4*65536), "outside the file"},
		"L1 table at the end of space": {with(imagetest.L1Offset, 1<<64-65536), "outside the file"},
		"L1 entry behind the end":      {imagetest.L1Entry(good, 4*65536), "outside the file"},
		"L1 entry at an odd place":     {imagetest.L1Entry(good, 512), "outside the file"},
		"refcounts in the header":      {with(imagetest.RefcountOffset, 0), "refcount table"},
		"refcounts behind the end":     {with(imagetest.RefcountOffset, 1<<40), "outside the file"},
		"no refcounts":                 {with(imagetest.RefcountClusters, 0), "refcount table"},
		"refcounts of 256 TiB":         {with(imagetest.RefcountClusters, 0xffffffff), "refcount table"},
		"refcount entry behind":        {imagetest.RefcountEntry(good, 1<<63), "outside the file"},
		"too many snapshots":           {with(imagetest.Snapshots, 0xffffffff), "snapshots"},
		"snapshots behind the end":     {imagetest.With(with(imagetest.Snapshots, 1), imagetest.SnapshotsOffset, 1<<40), "outside the file"},
		"snapshot table of nonsense":   {imagetest.With(with(imagetest.Snapshots, 1), imagetest.SnapshotsOffset, 2*65536), "snapshot"},
		"snapshots with large tables":  {snapshots(good, 0xffffffff, 0, 1), "a snapshot has an L1 table of 34359738360 bytes"},
		"snapshots with much to say":   {snapshots(good, 1, 0xffffffff, 1), "4294967295 more of its own"},
		"snapshots without an end":     {snapshots(good, 1, 1000, 100), "snapshot table ends outside the file"},
		"bitmaps behind the end":       {bitmaps(24, 1<<40), "bitmap directory ends outside the file"},
		"bitmaps at an odd place":      {bitmaps(24, 12345), "bitmap directory"},
		"bitmaps of 1 TiB":             {bitmaps(1<<40, 65536), "bitmap directory has"},
		"bitmaps that say nothing":     {imagetest.With(imagetest.Extension(good, 0x23852875), imagetest.Autoclear, 1), "extension about bitmaps has 4 bytes"},
		"extension of 4 GiB":           {with(imagetest.Field{Offset: 116, Width: 4}, 0xffffffff), "first cluster"},
		"endless extensions":           {endlessExtensions(good), "header extensions"},
	}
}

// snapshots gives an image a cluster of snapshot table. Its entries, with L1 tables of
// so many entries, lie behind one another.
func snapshots(good []byte, l1Entries, extra, count uint64) []byte {
	table := len(good)
	image := append(bytes.Clone(good), make([]byte, 65536)...)
	for at := table; at+40 <= len(image); at += 40 {
		imagetest.Set(image, imagetest.Field{Offset: at, Width: 8}, 3*65536)
		imagetest.Set(image, imagetest.Field{Offset: at + 8, Width: 4}, l1Entries)
		imagetest.Set(image, imagetest.Field{Offset: at + 36, Width: 4}, extra)
	}
	image = imagetest.With(image, imagetest.Snapshots, count)
	return imagetest.With(image, imagetest.SnapshotsOffset, uint64(table))
}

// bitmaps makes an image whose extension about bitmaps counts.
func bitmaps(length, offset uint64) []byte {
	image := imagetest.Extension(imagetest.QCOW2(strings.Repeat("\x00", 24)), 0x23852875)
	imagetest.Set(image, imagetest.Field{Offset: 128, Width: 8}, length)
	imagetest.Set(image, imagetest.Field{Offset: 136, Width: 8}, offset)
	return imagetest.With(image, imagetest.Autoclear, 1)
}

// endlessExtensions fills the first cluster with empty extensions.
func endlessExtensions(good []byte) []byte {
	image := bytes.Clone(good)
	for at := 112; at < 65536; at += 8 {
		imagetest.Set(image, imagetest.Field{Offset: at, Width: 8}, 0x6d61726b<<32)
	}
	return image
}

func TestCheckRefusesHostileImages(t *testing.T) {
	if _, err := check(imagetest.QCOW2("good")); err != nil {
		t.Fatalf("the good image is refused: %v", err)
	}
	for name, tc := range hostile() {
		t.Run(name, func(t *testing.T) {
			_, err := check(tc.image)
			if !errors.Is(err, qcow2.ErrRefused) || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.why) {
				t.Errorf("err = %v; want a refusal that says %q", err, tc.why)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, os.ErrClosed }

func TestCheckTellsReadErrorsFromRefusals(t *testing.T) {
	_, err := qcow2.Check(brokenReader{}, 65536, limit)
	if !errors.Is(err, os.ErrClosed) || errors.Is(err, qcow2.ErrRefused) {
		t.Errorf("err = %v; want the read error", err)
	}
}

// FuzzCheck looks for panics, and for accepted images that break a promise.
func FuzzCheck(f *testing.F) {
	f.Add(imagetest.QCOW2("seed")[:4*65536])
	for _, tc := range hostile() {
		f.Add(tc.image)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		header, err := check(image)
		if err != nil {
			return
		}
		if header.VirtualSize <= 0 || header.VirtualSize > limit || header.VirtualSize%512 != 0 {
			t.Errorf("accepted virtual size %d", header.VirtualSize)
		}
		if header.ClusterSize < 512 || header.ClusterSize > 2<<20 {
			t.Errorf("accepted cluster size %d", header.ClusterSize)
		}
		if len(image) >= 512 {
			if early, err := qcow2.CheckHeader(image[:512], limit); err != nil || early != header {
				t.Errorf("CheckHeader() = %+v, %v; Check() = %+v", early, err, header)
			}
		}
	})
}
