package imagestore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// zstdFrame is a frame whose content is not compressed, and which asks for a window
// of 2^exponent bytes and eighths more.
func zstdFrame(exponent, eighths int, content []byte) []byte {
	const (
		magic       = "\x28\xb5\x2f\xfd"
		noFlags     = 0
		leastWindow = 10 // exponent
		last        = 1
		maxBlock    = 128 << 10
	)
	frame := append([]byte(magic), noFlags, byte((exponent-leastWindow)<<3|eighths))
	for {
		block := content[:min(len(content), maxBlock)]
		content = content[len(block):]
		header := uint32(len(block)) << 3
		if len(content) == 0 {
			header |= last
		}
		frame = append(frame, byte(header), byte(header>>8), byte(header>>16))
		frame = append(frame, block...)
		if len(content) == 0 {
			return frame
		}
	}
}

// zstdSkipped is a frame of n bytes that are not content.
func zstdSkipped(n int) []byte {
	const magic = "\x5e\x2a\x4d\x18"
	return append(binary.LittleEndian.AppendUint32([]byte(magic), uint32(n)), make([]byte, n)...)
}

// xzWindow changes the window that a stream of one block asks for to 2^(bits/2+12)
// bytes; bits is even.
func xzWindow(stream []byte, bits byte) []byte {
	const (
		header     = 12         // where the block's begins
		properties = "\x21\x01" // of LZMA2, one byte long
		checksum   = 4          // bytes
	)
	stream = bytes.Clone(stream)
	block := stream[header:][:(int(stream[header])+1)*4]
	block[bytes.Index(block, []byte(properties))+len(properties)] = bits
	binary.LittleEndian.PutUint32(block[len(block)-checksum:], crc32.ChecksumIEEE(block[:len(block)-checksum]))
	return stream
}

// programs puts a script in the place of programs.
func programs(t *testing.T, script string, names ...string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for the unprivileged user
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

const xzMagic = "\xfd7zXZ\x00"

// TestXZIsConfined has a program in its place tell what it may do.
func TestXZIsConfined(t *testing.T) {
	programs(t, `cat >/dev/null
echo "user $(id -u) memory $(ulimit -v) writes $(ulimit -f) core $(ulimit -c) folder $PWD secret ${AMBIPOD_SECRET-none} arguments $*" >&2
exit 1
`, "xz")
	t.Setenv("AMBIPOD_SECRET", "42")
	user := os.Getuid()
	if user == 0 {
		user = nobody
	}
	srv := serve(t, map[string][]byte{"/d": []byte(xzMagic + " and so on")})
	s := openStore(t)
	_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
	checkRefusal(t, err, errdefs.IsInvalidArgument,
		fmt.Sprintf("user %d memory 393216 writes 0 core 0 folder / secret none arguments --decompress --stdout --threads=1 --memlimit-decompress=129MiB", user))
	wantEmpty(t, s)
}

// TestXZThatIsKilled tells a dead program from a bad stream.
func TestXZThatIsKilled(t *testing.T) {
	programs(t, "kill -9 $$\n", "xz")
	srv := serve(t, map[string][]byte{"/d": []byte(xzMagic + " and so on")})
	s := openStore(t)
	_, err := s.Pull(t.Context(), srv.name("/d"), Credentials{})
	checkRefusal(t, err, errdefs.IsUnavailable, "run xz: signal: killed")
	wantEmpty(t, s)
}

// TestXZThatHangs ends it with the pull.
func TestXZThatHangs(t *testing.T) {
	programs(t, "exec sleep 1000\n", "xz")
	s := openStore(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	plain, err := s.unwrap(ctx, wrapperXZ, strings.NewReader("whatever"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(plain); err == nil || !strings.Contains(err.Error(), "xz was stopped: context deadline exceeded") {
		t.Errorf("err = %v; want that it was stopped", err)
	}
	if err := plain.Close(); err != nil {
		t.Error(err)
	}
}
