package fdserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/unixsocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves on a private socket to callers of the user o.UID, or else of this
// test's own user, whoever that is; Listen itself would refuse root.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	served := o.UID
	o.Socket = filepath.Join(t.TempDir(), "s")
	o.UID, o.GID = os.Getuid(), os.Getgid()
	o.Logger = slog.New(slog.DiscardHandler)
	l, err := unixsocket.ListenPackets(t.Context(), o.Socket, o.UID, o.GID)
	if err != nil {
		t.Fatal(err)
	}
	if served != 0 {
		o.UID = served
	}
	s := &Server{o: o, listener: l, grants: map[string]Grant{}}
	serve(t, s)
	return s
}

func serve(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(s.o.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket left behind: %v", err)
		}
	})
}

func dial(t *testing.T, s *Server) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix(fdproto.Network, nil, &net.UnixAddr{Name: s.o.Socket, Net: fdproto.Network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func ask(t *testing.T, s *Server, key string) (fdproto.Reply, []int, error) {
	t.Helper()
	c := dial(t, s)
	if err := fdproto.SendRequest(c, key); err != nil {
		t.Fatal(err)
	}
	return fdproto.ReceiveReply(c)
}

// pipes stand for taps: what is written to a descriptor arrives at its reader.
type pipes struct{ readers, writers []*os.File }

func newPipes(t *testing.T, n int) *pipes {
	t.Helper()
	p := &pipes{}
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		p.readers, p.writers = append(p.readers, r), append(p.writers, w)
	}
	return p
}

// open is of taps with one queue each.
func (p *pipes) open(context.Context) (taps [][]*os.File, err error) {
	for _, w := range p.writers {
		taps = append(taps, []*os.File{w})
	}
	return taps, nil
}

func admit(int) error { return nil }

func TestHandOver(t *testing.T) {
	vhost := filepath.Join(t.TempDir(), "vhost")
	if err := os.WriteFile(vhost, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{VHostDevice: vhost, Executable: "/proc/self/exe"})
	p := newPipes(t, 3)
	var steps []string
	key := NewKey()
	s.Grant(key, Grant{
		NICs: []fdproto.NIC{{MAC: "02:00:00:00:00:01", MTU: 1450}, {MAC: "02:00:00:00:00:02", Model: "e1000", Bus: "pcie.0", Slot: 5}},
		Admit: func(pid int) error {
			steps = append(steps, fmt.Sprint("admit ", pid == os.Getpid()))
			return nil
		},
		Taps: func(context.Context) ([][]*os.File, error) {
			steps = append(steps, "open")
			return [][]*os.File{p.writers[:2], p.writers[2:]}, nil
		},
	})
	reply, fds, err := ask(t, s, key)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(steps, ", "); got != "admit true, open" {
		t.Errorf("steps: %s", got)
	}
	want := []fdproto.NIC{
		{MAC: "02:00:00:00:00:01", MTU: 1450, Slot: 0x10, VHost: true, Queues: 2},
		{MAC: "02:00:00:00:00:02", Model: "e1000", Bus: "pcie.0", Slot: 5, Queues: 1},
	}
	if fmt.Sprint(reply.NICs) != fmt.Sprint(want) {
		t.Errorf("NICs: got %v, want %v", reply.NICs, want)
	}
	if len(fds) != 5 {
		t.Fatalf("descriptors: %v", fds)
	}
	// The server's own copies are closed: after ours, the readers see the end.
	for i, fd := range []int{fds[0], fds[1], fds[4]} {
		f := os.NewFile(uintptr(fd), "tap")
		fmt.Fprintf(f, "frame %d", i)
		f.Close()
		p.readers[i].SetDeadline(time.Now().Add(time.Minute))
		got, err := io.ReadAll(p.readers[i])
		if err != nil || string(got) != fmt.Sprintf("frame %d", i) {
			t.Errorf("tap %d: %q, %v", i, got, err)
		}
	}
	for _, fd := range fds[2:4] {
		os.NewFile(uintptr(fd), "vhost").Close()
	}
}

func TestRefusals(t *testing.T) {
	p := newPipes(t, 1)
	good := Grant{NICs: []fdproto.NIC{{MAC: "02:00:00:00:00:01"}}, Admit: admit, Taps: p.open}
	for _, c := range []struct {
		name   string
		change func(*Options, *Grant)
		key    string
		want   string
	}{
		{"unknown key", nil, NewKey(), "the key is unknown, revoked or already used"},
		{"empty key", nil, "", "the key is unknown"},
		{"foreign program", func(o *Options, _ *Grant) { o.Executable = "/bin/sh" }, "k", "does not run /bin/sh"},
		{"not admitted", func(_ *Options, g *Grant) {
			g.Admit = func(int) error { return errors.New("no such cgroup") }
		}, "k", "no such cgroup"},
		{"no tap", func(_ *Options, g *Grant) {
			g.Taps = func(context.Context) ([][]*os.File, error) { return nil, errors.New("tap0 is in use") }
		}, "k", "tap0 is in use"},
		{"taps do not match", func(_ *Options, g *Grant) { g.NICs = nil }, "k", "1 taps were opened for 0 network cards"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, g := Options{}, good
			if c.change != nil {
				c.change(&o, &g)
			}
			s := start(t, o)
			s.Grant("k", g)
			_, fds, err := ask(t, s, c.key)
			if err == nil || !strings.Contains(err.Error(), c.want) || len(fds) != 0 {
				t.Errorf("got %v and %d descriptors, want %q", err, len(fds), c.want)
			}
		})
	}
}

// A libvirtd in a container of its own starts its own copy of vmwrapper.
func TestCopyOfProgramIsServed(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(t.TempDir(), "vmwrapper")
	for name, other := range map[string]struct {
		content []byte
		served  bool
	}{
		"copy":    {program, true},
		"changed": {append(program[:len(program)-1:len(program)-1], ^program[len(program)-1]), false},
		"longer":  {append(slices.Clip(program), 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(twin, other.content, 0o600); err != nil {
				t.Fatal(err)
			}
			err := checkProgram(os.Getpid(), twin)
			if served := err == nil; served != other.served {
				t.Errorf("served: %t (%v), want %t", served, err, other.served)
			}
		})
	}
}

func TestForeignUser(t *testing.T) {
	s := start(t, Options{UID: os.Getuid() + 1})
	_, _, err := ask(t, s, "k")
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("only QEMU's user %d is served", s.o.UID)) {
		t.Errorf("got %v", err)
	}
}

func TestKeyIsGoodOnce(t *testing.T) {
	s := start(t, Options{})
	g := Grant{Admit: admit, Taps: func(context.Context) ([][]*os.File, error) { return nil, nil }}
	s.Grant("used", g)
	s.Grant("revoked", g)
	s.Revoke("revoked")
	if _, _, err := ask(t, s, "used"); err != nil {
		t.Errorf("first use: %v", err)
	}
	for _, key := range []string{"used", "revoked"} {
		if _, _, err := ask(t, s, key); err == nil || !strings.Contains(err.Error(), "already used") {
			t.Errorf("%s key: got %v", key, err)
		}
	}
}

// TestBadRequests: each gets an answer, and the server goes on serving.
func TestBadRequests(t *testing.T) {
	s := start(t, Options{})
	for request, want := range map[string]string{
		"not JSON":                      "receive request",
		`{"version":99,"key":"k"}`:      "version 99",
		strings.Repeat("x", 60000):      "longer than 256 bytes",
		`{"version":1,"key":["array"]}`: "receive request",
	} {
		c := dial(t, s)
		if _, err := c.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := fdproto.ReceiveReply(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30s: got %v, want %q", request, err, want)
		}
	}
}

// TestSilentCallers: callers that say nothing delay neither others nor the end.
func TestSilentCallers(t *testing.T) {
	s := start(t, Options{})
	for range 50 {
		dial(t, s)
	}
	dial(t, s).Close()
	s.Grant("k", Grant{Admit: admit, Taps: func(context.Context) ([][]*os.File, error) { return nil, nil }})
	began := time.Now()
	if _, _, err := ask(t, s, "k"); err != nil {
		t.Error(err)
	}
	if waited := time.Since(began); waited >= requestTimeout {
		t.Errorf("waited %s behind silent callers", waited)
	}
}

func TestListen(t *testing.T) {
	o := Options{Socket: filepath.Join(t.TempDir(), "s"), Logger: slog.New(slog.DiscardHandler)}
	if _, err := Listen(t.Context(), o); !errdefs.IsInvalidArgument(err) {
		t.Errorf("as root: got %v", err)
	}
	s := start(t, Options{})
	info, err := os.Stat(s.o.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	o = s.o
	o.UID = max(o.UID, 1) // not root
	if _, err := Listen(t.Context(), o); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second server: got %v", err)
	}
}

func TestNewKey(t *testing.T) {
	a, b := NewKey(), NewKey()
	if len(a) != 32 || a == b || bytes.Trim([]byte(a), "0123456789abcdef") == nil && len(a) == 0 {
		t.Errorf("keys %q and %q", a, b)
	}
}
