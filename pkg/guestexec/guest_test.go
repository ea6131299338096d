package guestexec_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/guestexec/guest"
)

// patience is how long anything in these tests may take on a busy machine.
const patience = 30 * time.Second

// fakeGuest is this machine in the part of a guest: its agent really runs what it is
// told to, in a private folder, and its helper is package guest in this process.
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
	results  map[int]map[string]any
	launches int
	deny     string // what the agent answers to guest-exec instead of obeying
}

func newFakeGuest(t *testing.T) *fakeGuest {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "gx") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{
		t: t, dir: dir, socket: filepath.Join(dir, "exec.sock"),
		ports: make(chan net.Conn, 8), results: map[int]map[string]any{},
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
	// More than one chunk, and not only zeros.
	if err := os.WriteFile(helper, bytes.Repeat([]byte("#!helper\n"), 100_000), 0o600); err != nil {
		g.t.Fatal(err)
	}
	e := guestexec.New(guestexec.Options{
		Helper: helper, SocketOwners: []int{os.Getuid()},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	g.t.Cleanup(e.Close)
	return e
}

func (g *fakeGuest) vm() guestexec.VM {
	return guestexec.VM{ID: "vm", Socket: g.socket, Agent: guestagent.New(g, "uuid", "VM vm")}
}

// AgentCommand is the guest's agent.
func (g *fakeGuest) AgentCommand(_ context.Context, _, command string) (string, error) {
	var request struct {
		Execute   string
		Arguments struct {
			Path  string
			Arg   []string
			Input []byte `json:"input-data"`
			PID   int
		}
	}
	if err := json.Unmarshal([]byte(command), &request); err != nil {
		return "", err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	arguments := request.Arguments
	switch request.Execute {
	case "guest-exec":
		if g.deny != "" {
			return "", fmt.Errorf("%s: %w", g.deny, errAborted)
		}
		pid := len(g.results) + 1
		g.results[pid] = map[string]any{"exited": true, "exitcode": 0}
		if filepath.Base(arguments.Path) == "vmguest" {
			g.startHelperLocked(arguments.Path, arguments.Arg[0])
			return answer(map[string]any{"pid": pid})
		}
		g.results[pid] = g.runLocked(arguments.Path, arguments.Arg, arguments.Input)
		return answer(map[string]any{"pid": pid})
	case "guest-exec-status":
		return answer(g.results[arguments.PID])
	}
	return "", fmt.Errorf("command %s: %w", request.Execute, errAborted)
}

func answer(value any) (string, error) {
	text, err := json.Marshal(map[string]any{"return": value})
	return string(text), err
}

func (g *fakeGuest) runLocked(path string, args []string, input []byte) map[string]any {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "/run" { // the guest's folders are all in ours
			args = append(args[:i], g.dir)
			break
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(g.ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Errorf("agent: %v", err)
	}
	return map[string]any{
		"exited": true, "exitcode": cmd.ProcessState.ExitCode(),
		"out-data": stdout.Bytes(), "err-data": stderr.Bytes(),
	}
}

// startHelperLocked checks what was sent and runs the helper on the newest
// connection.
func (g *fakeGuest) startHelperLocked(path, token string) {
	g.launches++
	sent, err := os.ReadFile(path)
	if err != nil {
		g.t.Errorf("helper: %v", err)
	}
	original, err := os.ReadFile(filepath.Join(g.dir, "helper"))
	if err != nil {
		g.t.Errorf("helper: %v", err)
	}
	if !bytes.Equal(sent, original) {
		g.t.Errorf("helper arrived with %d bytes, sent %d", len(sent), len(original))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		g.t.Errorf("helper's file: %v %v, want mode 0700", info, err)
	}
	if !strings.HasPrefix(path, g.dir) {
		g.t.Fatalf("helper is in %s", path)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		g.t.Errorf("helper: %v", err)
	}
	if g.port != nil {
		_ = g.port.Close()
	}
	select {
	case g.port = <-g.ports:
	case <-time.After(patience):
		g.t.Error("the node does not connect")
		return
	}
	port := g.port
	g.running.Go(func() { g.serve(g.ctx, port, token) })
}

func (g *fakeGuest) launched() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.launches
}
