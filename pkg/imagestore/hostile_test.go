package imagestore

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// hostileCase is a server or an image that must be refused.
type hostileCase struct {
	name    string
	content []byte           // what the server sends, unless there is a handler
	handler http.HandlerFunc // what it does
	class   func(error) bool // of the error
	why     string           // part of its text
	opt     func(*Options)
	suffix  string // of the image name
}

// Limits of the stores in the table, small enough to run into.
const (
	hostileMaxSize    = 4 << 20
	hostileMaxVirtual = 64 << 20
	hostileStall      = 300 * time.Millisecond
)

func TestHostileServersAndImages(t *testing.T) {
	cases := append(hostileServers(), hostileImages(t)...)
	cases = append(cases, hostileWrappers(t)...)
	if len(cases) < 40 {
		t.Errorf("only %d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			handler := tc.handler
			if handler == nil {
				handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tc.content) }
			}
			server := httptest.NewServer(handler)
			t.Cleanup(server.Close)
			s := openStore(t, func(o *Options) {
				o.StallTimeout = hostileStall
				o.MaxDownload, o.MaxSize, o.MaxVirtualSize = hostileMaxSize, hostileMaxSize, hostileMaxVirtual
				if tc.opt != nil {
					tc.opt(o)
				}
			})
			_, err := s.Pull(t.Context(), imageName(server, "/disk.img")+tc.suffix, Credentials{})
			checkRefusal(t, err, tc.class, tc.why)
			wantEmpty(t, s)
			if len(s.Progress()) != 0 {
				t.Errorf("Progress() = %v after the end", s.Progress())
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, class func(error) bool, why string) {
	t.Helper()
	if err == nil || !class(err) || !strings.Contains(err.Error(), why) {
		t.Fatalf("err = %v; want another class, or that it says %q", err, why)
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\r\x00") || len(text) > 700 {
		t.Errorf("the error is no single sentence: %q", text)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// hijack answers with bytes that are no proper HTTP.
func hijack(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, answer)
	}
}

// changing breaks off each answer and has new content for the next, which it may try
// to pass off as the rest of the old.
func changing(disk []byte, parts bool) http.HandlerFunc {
	var answers atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		first, total := 0, len(disk)
		w.Header().Set("ETag", fmt.Sprintf(`"v%d"`, answers.Add(1)))
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); err == nil && parts {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, total-1, total))
			w.Header().Set("Content-Length", fmt.Sprint(total-first))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(total))
		}
		_, _ = w.Write(disk[first : first+1000])
	}
}

func hostileServers() []hostileCase {
	disk := imagetest.QCOW2("hostile")
	stalled := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
		_, _ = w.Write(disk[:100000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	loris := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
		for i := 0; r.Context().Err() == nil && i < len(disk); i++ {
			_, _ = w.Write(disk[i : i+1])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(hostileStall / 20):
			case <-r.Context().Done():
			}
		}
	}
	return []hostileCase{
		{name: "404", handler: status(404), class: errdefs.IsNotFound, why: "the server answers 404 Not Found"},
		{name: "410", handler: status(410), class: errdefs.IsNotFound, why: "410 Gone"},
		{name: "401", handler: status(401), class: errdefs.IsUnauthorized, why: "401 Unauthorized"},
		{name: "403", handler: status(403), class: errdefs.IsPermissionDenied, why: "403 Forbidden"},
		{name: "418", handler: status(418), class: errdefs.IsFailedPrecondition, why: "418"},
		{name: "429", handler: status(429), class: errdefs.IsUnavailable, why: "gave up after 5 attempts"},
		{name: "500", handler: status(500), class: errdefs.IsUnavailable, why: "500 Internal Server Error"},
		{name: "503", handler: status(503), class: errdefs.IsUnavailable, why: "503"},
		{name: "204 with nothing", handler: status(204), class: errdefs.IsFailedPrecondition, why: "204"},
		{name: "304 that nobody asked for", handler: status(304), class: errdefs.IsFailedPrecondition, why: "304"},
		{name: "redirect without target", handler: status(302), class: errdefs.IsFailedPrecondition, why: "302"},
		{name: "redirect loop", handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, class: errdefs.IsFailedPrecondition, why: "redirects more than 9 times"},
		{name: "redirect to a file", handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, class: errdefs.IsFailedPrecondition, why: `redirects to the protocol "file"`},
		{name: "redirect to no URL", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://[::"+strings.Repeat("x", 100<<10))
			w.WriteHeader(http.StatusFound)
		}, class: errdefs.IsUnavailable, why: "Location"},
		{name: "part that nobody asked for", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write([]byte("56789"))
		}, class: errdefs.IsUnavailable, why: "another part than was asked for"},
		{name: "part with much to say", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", strings.Repeat("x", 100<<10))
			w.WriteHeader(http.StatusPartialContent)
		}, class: errdefs.IsUnavailable, why: "another part than was asked for"},
		{name: "short body", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
			_, _ = w.Write(disk[:1000])
		}, class: errdefs.IsUnavailable, why: "the connection broke after 1000 bytes"},
		{name: "new content with every answer", handler: changing(disk, false), class: errdefs.IsUnavailable, why: "the content changed during the download"},
		{name: "new content as the rest of the old", handler: changing(disk, true), class: errdefs.IsUnavailable, why: "it changed on the server"},
		{name: "stall in the body", handler: stalled, class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "stall before the header", handler: func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "slow loris", handler: loris, class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "no HTTP", handler: hijack("SSH-2.0-OpenSSH_9.2p1\r\n"), class: errdefs.IsUnavailable, why: "malformed HTTP"},
		{name: "no HTTP and much of it", handler: hijack(strings.Repeat("SSH ", 40<<10) + "\r\n\r\n"), class: errdefs.IsUnavailable, why: "malformed HTTP"},
		{name: "no answer", handler: hijack(""), class: errdefs.IsUnavailable, why: "EOF"},
		{name: "endless header", handler: hijack("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), class: errdefs.IsUnavailable, why: "exceeded"},
		{name: "broken length", handler: hijack("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), class: errdefs.IsUnavailable, why: "Content-Length"},
		{name: "longer than the limit", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "999999999999")
			_, _ = w.Write(disk)
			<-r.Context().Done()
		}, class: errdefs.IsResourceExhausted, why: "999999999999 bytes"},
		{name: "endless body", handler: func(w http.ResponseWriter, r *http.Request) {
			for raw := imagetest.Raw("x", 1<<20); r.Context().Err() == nil; {
				_, _ = w.Write(raw)
			}
		}, class: errdefs.IsResourceExhausted, why: "limit"},
		{name: "no room", content: disk, opt: func(o *Options) { o.MinFree = 1 << 60 }, class: errdefs.IsResourceExhausted, why: "no room for the image"},
		{name: "wrong digest", content: disk, suffix: "@sha256:" + sum(nil), class: errdefs.IsDataLoss, why: sum(disk)},
	}
}

func hostileImages(t *testing.T) []hostileCase {
	good := imagetest.QCOW2("hostile")
	magic := func(offset int, magic string) []byte {
		b := imagetest.Raw("foreign", 64<<10)
		copy(b, strings.Repeat("\x01", 512))
		copy(b[offset:], magic)
		return b
	}
	noise := make([]byte, 4096)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	noise[0], noise[510], noise[1080] = 1, 1, 1
	cases := []hostileCase{
		{name: "empty file", content: []byte{}, why: "the file is empty"},
		{name: "HTML page", content: []byte("\n<!DOCTYPE html><html><body>Please log in</body></html>"), why: "an HTML page"},
		{name: "HTML page without type", content: []byte("<HTML><title>502</title>"), why: "an HTML page"},
		{name: "XML error", content: []byte(`<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`), why: "an XML document"},
		{name: "JSON error", content: []byte(`{"error":"denied"}`), why: "a JSON document"},
		{name: "text", content: []byte("version https://git-lfs.github.com/spec/v1\n"), why: "neither a boot sector"},
		{name: "noise", content: noise, why: "neither a boot sector"},
		{name: "qcow version 1", content: magic(0, "QFI\xfb\x00\x00\x00\x01"), why: "a qcow (version 1) image"},
		{name: "VMDK", content: magic(0, "KDMV"), why: "a VMDK image"},
		{name: "VMDK descriptor", content: []byte("# Disk DescriptorFile\nRW 63 FLAT \"/etc/shadow\" 0\n"), why: "a VMDK descriptor"},
		{name: "VHDX", content: magic(0, "vhdxfile"), why: "a VHDX image"},
		{name: "VHD", content: magic(0, "conectix"), why: "a VHD image"},
		{name: "VDI", content: magic(64, "\x7f\x10\xda\xbe"), why: "a VDI image"},
		{name: "QED", content: magic(0, "QED\x00"), why: "a QED image"},
		{name: "ISO", content: magic(32769, "CD001"), why: "an ISO image"},
		{name: "LUKS", content: magic(0, "LUKS\xba\xbe"), why: "LUKS"},
		{name: "tar", content: magic(257, "ustar"), why: "a tar archive"},
		{name: "zip", content: magic(0, "PK\x03\x04"), why: "a zip archive"},
		{name: "bzip2", content: magic(0, "BZh9"), why: "a bzip2 file"},
		{name: "program", content: magic(0, "\x7fELF"), why: "an ELF program"},
		{name: "raw disk that is cut", content: imagetest.Raw("raw", 5000), why: "not a multiple of 512"},
		{name: "raw disk over the virtual limit", content: imagetest.Raw("raw", 2<<20), opt: func(o *Options) { o.MaxVirtualSize = 1 << 20 }, why: "at most 1048576"},
		{name: "qcow2 with backing file", content: imagetest.With(good, imagetest.BackingOffset, 200), why: "it has a backing file"},
		{name: "qcow2 with external data", content: imagetest.With(good, imagetest.Incompatible, 4), why: "external file"},
		{name: "qcow2 with unknown features", content: imagetest.With(good, imagetest.Incompatible, 1<<40), why: "unknown features"},
		{name: "qcow2 encrypted", content: imagetest.With(good, imagetest.Encryption, 2), why: "encrypted"},
		{name: "qcow2 of absurd size", content: imagetest.With(good, imagetest.VirtualSize, 1<<60), why: "virtual size"},
		{name: "qcow2 cut short", content: good[:150000], why: "outside the file"},
		{name: "qcow2 that only qemu-img finds corrupt", content: corruptInside(good), why: "qemu-img check"},
		{name: "qcow2 with overlapping tables", content: imagetest.L1Entry(good, 1<<63|2<<16), why: "qemu-img check"},
	}
	for i := range cases {
		cases[i].class = errdefs.IsInvalidArgument
	}
	return cases
}

// corruptInside gives an image an L2 table that points behind the end of the file.
func corruptInside(good []byte) []byte {
	image := append(bytes.Clone(good), make([]byte, 65536)...)
	binary.BigEndian.PutUint64(image[3*65536:], 1<<63|4*65536) // L1: the table at cluster 4
	binary.BigEndian.PutUint64(image[4*65536:], 1<<63|1<<30)   // L2: data far outside
	binary.BigEndian.PutUint16(image[2*65536+2*4:], 1)         // cluster 4 is in use
	return image
}

func gzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, content []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(content, nil)
}

func xzed(t testing.TB, content []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "xz", "--stdout", "-1")
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("xz: %v (is the package xz-utils installed?)", err)
	}
	return out
}

func hostileWrappers(t *testing.T) []hostileCase {
	good := imagetest.QCOW2("wrapped")
	bomb := append(imagetest.Raw("bomb", 4096), make([]byte, 8<<20)...)
	gz, xz, zst := gzipped(t, good), xzed(t, good), zstded(t, good)
	flipped := bytes.Clone(gz)
	flipped[len(flipped)-6] ^= 0xff // in the checksum
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	if err := tw.WriteHeader(&tar.Header{Name: "disk.img", Size: 4, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(tw, "disk")
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	cases := []hostileCase{
		{name: "gzip bomb", content: gzipped(t, bomb), class: errdefs.IsResourceExhausted, why: "when unpacked"},
		{name: "zstd bomb", content: zstded(t, bomb), class: errdefs.IsResourceExhausted, why: "when unpacked"},
		{name: "xz bomb", content: xzed(t, bomb), class: errdefs.IsResourceExhausted, why: "when unpacked"},
		{name: "gzip cut short", content: gz[:len(gz)-9], why: "gzip stream is damaged"},
		{name: "gzip cut at the start", content: gz[:5], why: "gzip stream is damaged"},
		{name: "gzip with wrong checksum", content: flipped, why: "gzip stream is damaged"},
		{name: "gzip with garbage behind", content: append(bytes.Clone(gz), "garbage"...), why: "gzip stream is damaged"},
		{name: "zstd cut short", content: zst[:len(zst)-5], why: "zstd stream is damaged"},
		{name: "zstd with garbage behind", content: append(bytes.Clone(zst), "garbage"...), why: "zstd stream is damaged"},
		{name: "zstd with another stream behind", content: append(bytes.Clone(zst), noiseOf(4096)...), why: "zstd stream is damaged"},
		{name: "zstd with nothing but what is skipped", content: zstdSkipped(100), why: "the file is empty"},
		{name: "zstd cut in what is skipped", content: zstdSkipped(100)[:50], why: "the file is empty"},
		{name: "zstd that needs too much memory", content: zstdFrame(30, 0, nil), why: "zstd stream needs more than"},
		{name: "zstd that needs a bit too much memory", content: zstdFrame(27, 1, good), why: "zstd stream needs more than"},
		{name: "xz cut short", content: xz[:len(xz)-20], why: "xz stream is damaged"},
		{name: "xz that needs too much memory", content: xzWindow(xz, 36), why: "xz stream needs more than"},
		{name: "xz with garbage inside", content: bytes.Replace(xz, xz[40:60], noiseOf(20), 1), why: "xz stream is damaged"},
		{name: "gzip in gzip", content: gzipped(t, gz), why: "a gzip file"},
		{name: "gzip of nothing", content: gzipped(t, nil), why: "the file is empty"},
		{name: "gzip of a web page", content: gzipped(t, []byte("<html>")), why: "an HTML page"},
		{name: "gzip of a tar archive", content: gzipped(t, archive.Bytes()), why: "a tar archive"},
		{name: "gzip of an image with backing file", content: gzipped(t, imagetest.With(good, imagetest.BackingOffset, 200)), why: "backing file"},
		{name: "gzip of a raw disk that is cut", content: gzipped(t, imagetest.Raw("raw", 5000)), why: "not a multiple of 512"},
		{name: "gzip with wrong digest", content: gz, suffix: "@sha256:" + sum(good), class: errdefs.IsDataLoss, why: sum(gz)},
	}
	for i := range cases {
		if cases[i].class == nil {
			cases[i].class = errdefs.IsInvalidArgument
		}
	}
	return cases
}

func noiseOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*37 + 1)
	}
	return b
}

func TestForgottenPartialsMakeRoom(t *testing.T) {
	srv := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	s := openStore(t)
	part, err := openPartial(s.paths, hashKey("forgotten"))
	if err != nil {
		t.Fatal(err)
	}
	if err := join(part.begin(validator{Strong: true, Total: 9}), part.append([]byte("x")), part.close(true)); err != nil {
		t.Fatal(err)
	}
	pull(t, s, srv.name("/d"))
	if _, err := os.Stat(part.base + endingBytes); err != nil {
		t.Errorf("with room enough, the partial download: %v", err)
	}
	s.opts.MinFree = 1 << 60
	_, err = s.Pull(t.Context(), Prefix+"http/"+strings.TrimPrefix(srv.URL, "http://")+"/d:again", Credentials{})
	if err != nil {
		t.Fatalf("an unchanged image needs no room: %v", err)
	}
	srv.put("/d", imagetest.QCOW2("b"))
	_, err = s.Pull(t.Context(), srv.name("/d"), Credentials{})
	checkRefusal(t, err, errdefs.IsResourceExhausted, "no room for the image")
	if _, err := os.Stat(part.base + endingBytes); !os.IsNotExist(err) {
		t.Errorf("without room, the partial download: %v; want it gone", err)
	}
}

func TestRefusedConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	s := openStore(t)
	_, err = s.Pull(t.Context(), Prefix+"http/"+address+"/d", Credentials{})
	checkRefusal(t, err, errdefs.IsUnavailable, "connection refused")
	wantEmpty(t, s)
}

func TestHostileTLS(t *testing.T) {
	plain := serve(t, map[string][]byte{"/d": imagetest.QCOW2("a")})
	for _, tc := range []struct {
		name  string
		start func(*httptest.Server)
		class func(error) bool
		why   string
	}{
		{"unknown authority", (*httptest.Server).StartTLS, errdefs.IsFailedPrecondition, "TLS certificate is not valid"},
		{"no TLS", (*httptest.Server).Start, errdefs.IsUnavailable, "HTTP response to HTTPS client"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(plain.Config.Handler)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			tc.start(server)
			t.Cleanup(server.Close)
			s := openStore(t)
			name := Prefix + "https/" + server.Listener.Addr().String() + "/d"
			_, err := s.Pull(t.Context(), name, Credentials{})
			checkRefusal(t, err, tc.class, tc.why)
			wantEmpty(t, s)
		})
	}
}
