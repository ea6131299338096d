package vmwrapper

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write golden files")

func TestCommandGolden(t *testing.T) {
	got, err := Command([]string{"qemu", "-name", "guest=vm"}, []fdproto.NIC{
		{MAC: "02:00:00:00:00:01", MTU: 1450, Slot: 0x10},
		{MAC: "02:00:00:00:00:02", MTU: 9000, Slot: 0x11, VHost: true},
		{MAC: "02:00:00:00:00:03", MTU: 1500, Slot: 3, Model: "e1000e", Bus: "pcie.0"},
		{MAC: "02:00:00:00:00:04", MTU: 1500, Slot: 0x12, Queues: 2},
		{MAC: "02:00:00:00:00:05", Slot: 0x13, Queues: 2, VHost: true},
	}, []int{7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(got, "\n") + "\n"
	golden := filepath.Join("testdata", "command.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("command line (-want +got):\n%s", diff)
	}
}

func TestCommandRefuses(t *testing.T) {
	good := fdproto.NIC{MAC: "02:00:00:00:00:01", Slot: 0x10}
	for name, change := range map[string]func(*fdproto.NIC){
		`MAC address "02:00:00:00:00:01,evil=on"`: func(n *fdproto.NIC) { n.MAC += ",evil=on" },
		`model "virtio-net-pci,x" is not known`:   func(n *fdproto.NIC) { n.Model = "virtio-net-pci,x" },
		`cannot be served by vhost-net`:           func(n *fdproto.NIC) { n.Model, n.VHost = "e1000", true },
		`bus "pci.0,x=y" is not valid`:            func(n *fdproto.NIC) { n.Bus = "pci.0,x=y" },
		`PCI slot 32`:                             func(n *fdproto.NIC) { n.Slot = 32 },
		`PCI slot 0`:                              func(n *fdproto.NIC) { n.Slot = 0 },
		`cannot have several queues`:              func(n *fdproto.NIC) { n.Model, n.Queues = "e1000", 2 },
		`9 queues`:                                func(n *fdproto.NIC) { n.Queues = 9 },
		`MTU 67`:                                  func(n *fdproto.NIC) { n.MTU = 67 },
	} {
		nic := good
		change(&nic)
		if _, err := Command(nil, []fdproto.NIC{nic}, []int{3, 4}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: got %v, want %q", nic, err, name)
		}
	}
	if _, err := Command(nil, []fdproto.NIC{good, good}, []int{3}); err == nil {
		t.Error("two cards with one descriptor were accepted")
	}
}

// became records what the process turned into.
type became struct {
	path      string
	args, env []string
}

func (b *became) exec(path string, args, env []string) error {
	*b = became{path, args, env}
	return errors.New("exec format error")
}

func TestProbe(t *testing.T) {
	var b became
	p := Process{Args: []string{"vmwrapper", "-machine", "none", "-qmp", "unix:x"}, Env: []string{"LC_ALL=C"}, EUID: 0, Exec: b.exec}
	err := Run(t.Context(), p)
	if err == nil || err.Error() != "run "+DefaultEmulator+": exec format error" {
		t.Errorf("error: %v", err)
	}
	want := became{DefaultEmulator, []string{DefaultEmulator, "-machine", "none", "-qmp", "unix:x"}, []string{"LC_ALL=C"}}
	if diff := cmp.Diff(want, b, cmp.AllowUnexported(became{})); diff != "" {
		t.Errorf("became (-want +got):\n%s", diff)
	}
}

func TestRefusesRoot(t *testing.T) {
	var b became
	p := Process{Args: []string{"vmwrapper"}, Env: []string{EnvKey + "=k"}, EUID: 0, Exec: b.exec}
	if err := Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "not run as root") || b.path != "" {
		t.Errorf("got %v, became %q", err, b.path)
	}
}

// serveOnce answers one caller on a private socket and returns the socket's path.
func serveOnce(t *testing.T, answer func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix(fdproto.Network, &net.UnixAddr{Name: path, Net: fdproto.Network})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		answer(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestFetchesDescriptors(t *testing.T) {
	tap, err := os.CreateTemp(t.TempDir(), "tap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() }) // after the server is done
	requests := make(chan fdproto.Request, 1)
	socket := serveOnce(t, func(c *net.UnixConn) {
		got, _ := fdproto.ReceiveRequest(c)
		requests <- got
		_ = fdproto.SendReply(c, fdproto.Reply{NICs: []fdproto.NIC{{MAC: "02:00:00:00:00:01", Slot: 16}}}, []*os.File{tap})
	})
	var b became
	var fd int
	err = Run(t.Context(), Process{
		Args: []string{"vmwrapper", "-S"}, EUID: 1000,
		Env: []string{"A=1", EnvKey + "=secret", EnvSocket + "=" + socket, EnvEmulator + "=/opt/qemu"},
		Exec: func(path string, args, env []string) error {
			_, rest, _ := strings.Cut(args[3], ",fd=")
			for _, r := range rest {
				fd = fd*10 + int(r-'0')
			}
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC != 0 {
				t.Errorf("descriptor %d would not survive: flags %x, %v", fd, flags, err)
			}
			return b.exec(path, args, env)
		},
	})
	if err == nil || !strings.HasPrefix(err.Error(), "run /opt/qemu") {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if got := <-requests; got.Key != "secret" {
		t.Errorf("request: %+v", got)
	}
	if !slices.Equal(b.env, []string{"A=1"}) || b.args[0] != "/opt/qemu" || b.args[1] != "-S" || b.args[2] != "-netdev" {
		t.Errorf("became %q with %q", b.args, b.env)
	}
}

func TestFetchErrors(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*net.UnixConn)
		want   string
	}{
		"refusal": {func(c *net.UnixConn) {
			_, _ = fdproto.ReceiveRequest(c)
			_ = fdproto.SendReply(c, fdproto.Reply{Error: "no such pod"}, nil)
		}, "no such pod"},
		"hang-up":  {func(c *net.UnixConn) { _, _ = fdproto.ReceiveRequest(c) }, "without an answer"},
		"nonsense": {func(c *net.UnixConn) { _, _ = fdproto.ReceiveRequest(c); _, _ = c.Write([]byte("{")) }, "receive reply"},
		"descriptors missing": {func(c *net.UnixConn) {
			_, _ = fdproto.ReceiveRequest(c)
			_, _ = c.Write([]byte(`{"nics":[{"mac":"02:00:00:00:00:01","slot":16}]}`))
		}, "0 descriptors for 1"},
	} {
		t.Run(name, func(t *testing.T) {
			var b became
			env := []string{EnvKey + "=k", EnvSocket + "=" + serveOnce(t, c.answer)}
			err := Run(t.Context(), Process{Args: []string{"vmwrapper"}, EUID: 1000, Env: env, Exec: b.exec})
			if err == nil || !strings.Contains(err.Error(), c.want) || b.path != "" {
				t.Errorf("got %v, want %q; became %q", err, c.want, b.path)
			}
		})
	}
	var b became
	p := Process{Args: []string{"vmwrapper"}, EUID: 1000, Env: []string{EnvKey + "=k", EnvSocket + "=" + t.TempDir() + "/none"}, Exec: b.exec}
	if err := Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "vmruntime cannot be reached") {
		t.Errorf("no server: %v", err)
	}
	p.Env = []string{EnvKey + "=k"}
	if err := Run(context.Background(), p); err == nil || !strings.Contains(err.Error(), EnvSocket+" is not set") {
		t.Errorf("no socket: %v", err)
	}
}
