package proxy

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quietPair returns both ends of a connection, the first one quiet.
func quietPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	listener, err := Listen(t.Context(), filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer, err := new(net.Dialer).DialContext(t.Context(), "unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	conn, err := quietListener{listener}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, ok := conn.(*quietConn); !ok {
		t.Fatalf("the listener gives a %T", conn)
	}
	return conn, peer
}

// Far more than a socket holds goes through in one write and many reads, and the other way.
func TestQuietConnCarriesAll(t *testing.T) {
	conn, peer := quietPair(t)
	sent := make([]byte, 3<<20)
	if _, err := rand.Read(sent); err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]net.Conn{{conn, peer}, {peer, conn}} {
		written := make(chan error, 1)
		go func() {
			n, err := ends[0].Write(sent)
			if err == nil && n != len(sent) {
				err = io.ErrShortWrite
			}
			written <- err
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(ends[1], got); err != nil {
			t.Fatal(err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, sent) {
			t.Fatal("what arrives is not what was sent")
		}
	}
}

func TestQuietConnEnds(t *testing.T) {
	t.Run("the peer closes", func(t *testing.T) {
		conn, peer := quietPair(t)
		peer.Close()
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("Read = %d, %v, want EOF", n, err)
		}
		if n, err := conn.Write([]byte("x")); n != 0 || !errors.Is(err, unix.EPIPE) {
			t.Errorf("Write = %d, %v, want EPIPE", n, err)
		}
	})
	t.Run("closed while reading", func(t *testing.T) {
		conn, _ := quietPair(t)
		read := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			read <- err
		}()
		conn.Close()
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read = %v, want ErrClosed", err)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		conn, _ := quietPair(t)
		if err := conn.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read = %v, want a time-out", err)
		}
		if err := conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Write(make([]byte, 4<<20)) // nobody reads
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write = %d, %v, want some bytes and a time-out", n, err)
		}
	})
}

// What is no unix socket is left alone.
func TestQuietOtherConn(t *testing.T) {
	one, two := net.Pipe()
	defer one.Close()
	defer two.Close()
	if quiet(one) != one {
		t.Error("a pipe has been wrapped")
	}
}
