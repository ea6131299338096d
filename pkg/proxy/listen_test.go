package proxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	s := newStoppedSetup(t)
	path := filepath.Join(s.dir, "run", "p.sock") // its folder does not exist yet
	listener, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v, want a socket of mode 0600", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("folder %v, %v, want mode 0711", info.Mode(), err)
	}
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names the socket in use", err)
	}
	listener.Close()
}

// The folder may be somebody else's: its mode stays.
func TestListenLeavesTheFolderAlone(t *testing.T) {
	s := newStoppedSetup(t)
	before, err := os.Stat(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(t.Context(), filepath.Join(s.dir, "p.sock"))
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if after, err := os.Stat(s.dir); err != nil || after.Mode() != before.Mode() {
		t.Errorf("the folder's mode is %v, was %v", after.Mode(), before.Mode())
	}
}

func TestPassedSocket(t *testing.T) {
	env := func(pid, fds string) func(string) string {
		return func(name string) string { return map[string]string{"LISTEN_PID": pid, "LISTEN_FDS": fds}[name] }
	}
	for name, getenv := range map[string]func(string) string{"none": env("", ""), "another process's": env("8", "1"), "empty": env("7", "")} {
		if l, err := passedSocket(7, getenv); l != nil || err != nil {
			t.Errorf("%s: %v, %v, want nothing", name, l, err)
		}
	}
	if _, err := passedSocket(7, env("7", "2")); err == nil || !strings.Contains(err.Error(), "exactly one ListenStream") {
		t.Errorf("error %v, want one about two sockets", err)
	}
}
