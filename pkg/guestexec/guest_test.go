package guestexec_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/guestexec/guest"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

// patience is how long anything in these tests may take on a busy machine.
const patience = 30 * time.Second

// fakeGuest is this machine in the part of a guest: its helper is package guest in
// this process, which runs real programs. The script that receives the helper is
// tried in a real guest, by the integration tests.
type fakeGuest struct {
	t      *testing.T
	dir    string
	socket string

	// serve stands for the helper; the default is the real one.
	serve func(ctx context.Context, port net.Conn, token string)

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	ports   chan net.Conn // the node's connections, seen from the guest

	mu       sync.Mutex // guards the rest
	port     net.Conn
	launches int

	// Set before the first command.
	deny        string        // what the agent answers to guest-exec instead of obeying
	scriptFails string        // what the script says instead of receiving the helper
	scriptHangs bool          // it says nothing at all
	patience    time.Duration // the executor's
}

func newFakeGuest(t *testing.T) *fakeGuest {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "gx") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{
		t: t, dir: dir, socket: filepath.Join(dir, "exec.sock"),
		ports: make(chan net.Conn, 8),
	}
	g.serve = func(ctx context.Context, port net.Conn, token string) { _ = guest.Serve(ctx, port, token) }
	g.ctx, g.cancel = context.WithCancel(context.Background())
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	g.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			g.ports <- conn
		}
	})
	t.Cleanup(func() {
		g.cancel()
		_ = listener.Close()
		g.unplug()
		g.running.Wait()
		_ = os.RemoveAll(dir)
	})
	return g
}

// unplug closes the port as the end of the VM does.
func (g *fakeGuest) unplug() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.port != nil {
		_ = g.port.Close()
		g.port = nil
	}
}

func (g *fakeGuest) executor() *guestexec.Executor {
	g.t.Helper()
	helper := filepath.Join(g.dir, "helper")
	if err := os.WriteFile(helper, bytes.Repeat([]byte("#!helper\n"), 100_000), 0o600); err != nil {
		g.t.Fatal(err)
	}
	e := guestexec.New(guestexec.Options{
		Helper: helper, SocketOwners: []int{os.Getuid()}, Patience: g.patience,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	g.t.Cleanup(e.Close)
	return e
}

func (g *fakeGuest) vm() guestexec.VM {
	return guestexec.VM{ID: "vm", Name: "VM vm", Socket: g.socket, Agent: guestagent.New(g, "uuid", "VM vm")}
}

// AgentCommand is the guest's agent. All that it is asked for is to receive the
// helper and to start it.
func (g *fakeGuest) AgentCommand(_ context.Context, _, command string) (string, error) {
	var request struct {
		Execute   string
		Arguments struct {
			Arg []string
			PID int
		}
	}
	if err := json.Unmarshal([]byte(command), &request); err != nil {
		return "", err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deny != "" {
		return "", fmt.Errorf("%s: %w", g.deny, errdefs.ErrAborted)
	}
	switch request.Execute {
	case "guest-exec":
		g.launches++
		// sh -c SCRIPT PREFIX PORT TOKEN SIZE PLACE...
		token, size := request.Arguments.Arg[4], request.Arguments.Arg[5]
		if g.scriptFails == "" {
			g.startHelperLocked(token, size)
		}
		return answer(map[string]any{"pid": g.launches})
	case "guest-exec-status":
		if g.scriptFails != "" {
			return answer(map[string]any{"exited": true, "exitcode": 1, "err-data": []byte(g.scriptFails)})
		}
		return answer(map[string]any{"exited": false})
	}
	return "", fmt.Errorf("command %s: %w", request.Execute, errdefs.ErrAborted)
}

func answer(value any) (string, error) {
	text, err := json.Marshal(map[string]any{"return": value})
	return string(text), err
}

// startHelperLocked does what the script does on the newest connection.
func (g *fakeGuest) startHelperLocked(token, size string) {
	if g.port != nil {
		_ = g.port.Close()
	}
	select {
	case g.port = <-g.ports:
	case <-time.After(patience):
		g.t.Error("the node does not connect")
		return
	}
	if g.scriptHangs {
		return
	}
	port := g.port
	g.running.Go(func() {
		fmt.Fprint(port, wire.Ready(token))
		if err := wire.Await(oneByOne{port}, wire.Program(token)); err != nil {
			g.t.Error(err)
		}
		want, err := os.ReadFile(filepath.Join(g.dir, "helper"))
		if err != nil || strconv.Itoa(len(want)) != size {
			g.t.Errorf("helper of %d bytes is announced with %s: %v", len(want), size, err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(port, got); err != nil || !bytes.Equal(got, want) {
			g.t.Errorf("the helper does not arrive as it was sent: %v", err)
		}
		g.serve(g.ctx, port, token)
	})
}

// oneByOne reads like a shell: nothing beyond the byte that was asked for.
type oneByOne struct{ io.Reader }

func (r oneByOne) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

func (g *fakeGuest) launched() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.launches
}
