//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
)

// screen is a terminal in which a command runs.
type screen struct {
	t        *testing.T
	cmd      *exec.Cmd
	terminal *os.File
	mu       sync.Mutex
	shown    bytes.Buffer
	done     chan struct{} // closed when the command has closed its terminal
}

func (v vmctl) onScreen(t *testing.T, size pty.Winsize, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, cmd: v.command(deadline(t), args...), done: make(chan struct{})}
	var err error
	if s.terminal, err = pty.StartWithSize(s.cmd, &size); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(s, s.terminal)
	}()
	t.Cleanup(func() { _ = s.terminal.Close() })
	return s
}

// Write implements io.Writer for what the command shows.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

func (s *screen) see(want string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("the screen shows %q", want), func(context.Context) error {
		if text := s.text(); !strings.Contains(text, want) {
			return fmt.Errorf("it shows %q", text)
		}
		return nil
	})
}

func (s *screen) typeIn(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.terminal, keys); err != nil {
		s.t.Fatal(err)
	}
}

// end waits for the command and returns its exit code.
func (s *screen) end() int {
	s.t.Helper()
	err := s.cmd.Wait()
	<-s.done
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// terminal changes the size of the window while a command runs.
func (v vmctl) terminal(t *testing.T) {
	s := v.onScreen(t, pty.Winsize{Rows: 17, Cols: 71}, "exec", "-it", v.name(), "--", "sh")
	s.typeIn("until [ \"$(stty size)\" = '17 71' ]; do :; done; echo first''size\r")
	s.see("firstsize")
	if err := pty.Setsize(s.terminal, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	s.typeIn("until [ \"$(stty size)\" = '33 99' ]; do :; done; echo second''size; exit 7\r")
	s.see("secondsize")
	if code := s.end(); code != 7 {
		t.Errorf("exit code %d, want 7:\n%s", code, s.text())
	}
}

// console attaches two terminals to the serial console.
func (v vmctl) console(t *testing.T) {
	first := v.onScreen(t, pty.Winsize{Rows: 24, Cols: 80}, "console", v.name())
	first.see("Ctrl-] detaches")
	first.typeIn("\r")
	first.see("login:")
	second := v.onScreen(t, pty.Winsize{Rows: 24, Cols: 80}, "console", v.config.GetMetadata().GetName())
	second.see("Ctrl-] detaches")
	second.typeIn("somebody")
	second.see("somebody")
	first.see("somebody")
	first.typeIn("\x1d")
	if code := first.end(); code != 0 {
		t.Errorf("detaching ended with %d: %s", code, first.text())
	}
	second.typeIn("else")
	second.see("else")
	second.typeIn("\x1d")
	if code := second.end(); code != 0 {
		t.Errorf("detaching ended with %d: %s", code, second.text())
	}
}

func (v vmctl) ssh(t *testing.T, key string) {
	known := filepath.Join(t.TempDir(), "known")
	args := []string{"ssh", "-i", key, "-o", "UserKnownHostsFile=" + known, "-o", "BatchMode=yes", "root@" + v.name(), "--"}
	r := v.try(t, append(args, "cat", "/etc/hostname; exit 6")...)
	if r.code != 6 || strings.TrimSpace(r.out) != v.config.GetHostname() {
		t.Errorf("%+v", r)
	}
	// Names of hosts may be hashed.
	alias := strings.TrimPrefix(v.id, "vm.")
	if out, err := exec.CommandContext(deadline(t), "ssh-keygen", "-F", alias, "-f", known).CombinedOutput(); err != nil {
		t.Errorf("the VM's key is not kept: %v: %s", err, out)
	}
	if r := v.try(t, append(args, "true")...); r.code != 0 {
		t.Errorf("a second time: %+v", r)
	}
	if r := v.try(t, "tunnel", v.name(), "9"); r.code != 1 || !strings.Contains(r.err, "port 9") || strings.Contains(r.err, "uid") {
		t.Errorf("a port where nobody listens: %+v", r)
	}
}

func (v vmctl) screenshot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "screen.png")
	v.run(t, "screenshot", v.name(), "-f", file)
	picture, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer picture.Close()
	decoded, err := png.Decode(picture)
	if err != nil {
		t.Fatal(err)
	}
	// VGA text of 80 by 25 characters.
	if size := decoded.Bounds().Size(); size.X != 720 || size.Y != 400 {
		t.Errorf("the picture has %v points, want 720 by 400", size)
	}
	if r := v.try(t, "screenshot", v.name(), "-f", "/nowhere/x.png"); r.code != 1 || !strings.Contains(r.err, "/nowhere/x.png") {
		t.Errorf("%+v", r)
	}
}

// vnc connects two viewers, one after another.
func (v vmctl) vnc(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	cmd := v.command(ctx, "vnc", v.name())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	_, address, _ := strings.Cut(string(line[:n]), "vnc://")
	address, _, _ = strings.Cut(address, ";")
	for range 2 {
		viewer, err := (&net.Dialer{}).DialContext(ctx, "tcp", intoNode(t, ctx, v.n, address))
		if err != nil {
			t.Fatal(err)
		}
		greeting := make([]byte, len("RFB 003.008\n"))
		if _, err := io.ReadFull(viewer, greeting); err != nil || !strings.HasPrefix(string(greeting), "RFB ") {
			t.Errorf("%s greets with %q, %v", address, greeting, err)
		}
		viewer.Close()
	}
	cancel()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("vnc ended with %d", code)
	}
	if r := v.try(t, "vnc", v.name(), "--listen", "0.0.0.0:0"); r.code != 2 || !strings.Contains(r.err, "loopback") {
		t.Errorf("a screen for the network: %+v", r)
	}
}
