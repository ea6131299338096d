package unixsocket

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestListenMakesAPrivateSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := Listen(t.Context(), path, os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("socket stays after Close: %v", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for network, listen := range map[string]func(context.Context, string, int, int) (*net.UnixListener, error){
		streams: Listen, packets: ListenPackets,
	} {
		dead, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		dead.SetUnlinkOnClose(false) // as a process that is killed leaves it
		if err := dead.Close(); err != nil {
			t.Fatal(err)
		}
		listener, err := listen(t.Context(), path, os.Getuid(), os.Getgid())
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	served := filepath.Join(dir, "served")
	listener, err := Listen(t.Context(), served, os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if _, err := Listen(t.Context(), served, os.Getuid(), os.Getgid()); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), served) {
		t.Errorf("a served socket: %v", err)
	}
	if _, err := os.Stat(served); err != nil {
		t.Errorf("the served socket was removed: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), file, os.Getuid(), os.Getgid()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a file in the way: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file was removed: %v", err)
	}

	long := filepath.Join(dir, strings.Repeat("x", 120))
	if _, err := Listen(t.Context(), long, os.Getuid(), os.Getgid()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path that is too long: %v", err)
	}
}
