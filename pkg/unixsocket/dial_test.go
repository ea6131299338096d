package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// served returns a folder with a socket "s" that somebody serves.
func served(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return dir
}

func TestDialConnects(t *testing.T) {
	dir := served(t)
	connection, err := Dial(t.Context(), filepath.Join(dir, "s"), os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
}

func TestDialPassesTheLimitOfAddresses(t *testing.T) {
	dir := served(t)
	long := filepath.Join(dir, strings.Repeat("x", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "s"), filepath.Join(long, "s")); err != nil {
		t.Fatal(err)
	}
	connection, err := Dial(t.Context(), filepath.Join(long, "s"), os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	_ = connection.Close()
}

// Whoever listens may be too busy to accept, as QEMU is while its guest boots on a
// loaded machine.
func TestDialWithAFullBacklog(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(listener) })
	if err := unix.Bind(listener, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 0); err != nil {
		t.Fatal(err)
	}
	first, err := Dial(t.Context(), path, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = first.Close() })
	second, err := Dial(t.Context(), path, os.Getuid())
	if err == nil {
		_ = second.Close()
	}
	if !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want an unavailable socket", err)
	}
}

func TestDialRefusesWhatCouldBeSwapped(t *testing.T) {
	const nobody = 65534
	me := os.Getuid()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		users   []int
		refused func(error) bool
		words   string
	}{
		"symbolic link": {
			func(t *testing.T, dir string) {
				if err := os.Rename(filepath.Join(dir, "s"), filepath.Join(dir, "other")); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink("other", filepath.Join(dir, "s")); err != nil {
					t.Fatal(err)
				}
			},
			[]int{me},
			errdefs.IsPermissionDenied, "no socket",
		},
		"plain file": {
			func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "s")); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "s"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			},
			[]int{me},
			errdefs.IsPermissionDenied, "no socket",
		},
		"folder that others may write to": {
			func(t *testing.T, dir string) {
				if err := os.Chmod(dir, 0o777); err != nil {
					t.Fatal(err)
				}
			},
			[]int{me},
			errdefs.IsPermissionDenied, "folder",
		},
		"socket of another user": {func(*testing.T, string) {}, []int{nobody}, errdefs.IsPermissionDenied, "belongs to"},
		"nobody listens": {
			func(t *testing.T, dir string) {
				dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead"), Net: "unix"})
				if err != nil {
					t.Fatal(err)
				}
				dead.SetUnlinkOnClose(false)
				_ = dead.Close()
				if err := os.Rename(filepath.Join(dir, "dead"), filepath.Join(dir, "s")); err != nil {
					t.Fatal(err)
				}
			},
			[]int{me},
			errdefs.IsUnavailable, "nobody listens",
		},
		"no socket": {
			func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "s")); err != nil {
					t.Fatal(err)
				}
			},
			[]int{me},
			errdefs.IsNotFound, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := served(t)
			c.prepare(t, dir)
			connection, err := Dial(t.Context(), filepath.Join(dir, "s"), c.users...)
			if !c.refused(err) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want a refusal with %q", err, c.words)
			}
			if connection != nil {
				_ = connection.Close()
			}
		})
	}
}

func TestDialRefusesAStrangerWhoListens(t *testing.T) {
	dir := served(t)
	connection, err := Dial(t.Context(), filepath.Join(dir, "s"), os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	const nobody = 65534
	if err := checkPeer(connection, []int{nobody}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("%v, want ErrPermissionDenied", err)
	}
}
