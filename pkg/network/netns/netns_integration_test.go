//go:build integration

package netns

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := Do(path, nil); !errdefs.IsNotFound(err) {
		t.Errorf("entering nothing: %v", err)
	}
	must(t, Create(path))
	if err := Create(path); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second time: %v", err)
	}
	if !Exists(path) {
		t.Error("it does not exist")
	}
	must(t, Do(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().RawFlags&unix.IFF_UP == 0 {
			err = errors.New("loopback is down")
		}
		links, listErr := netlink.LinkList()
		if len(links) == 0 || len(links) > 0 && links[0].Attrs().Name != "lo" {
			t.Errorf("links: %v", links)
		}
		return errors.Join(err, listErr)
	}))
	want := errors.New("from inside")
	if err := Do(path, func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error of the function: %v", err)
	}
	for range 2 {
		must(t, Remove(path))
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) || Exists(path) {
			t.Errorf("after removal: %v", err)
		}
	}
}

// TestRemoveLeftovers: a plain file, and one with several mounts on it.
func TestRemoveLeftovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	must(t, os.WriteFile(path, nil, 0o600))
	if err := Do(path, nil); !errdefs.IsNotFound(err) {
		t.Errorf("entering a plain file: %v", err)
	}
	must(t, Remove(path))
	must(t, Create(path))
	must(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
	must(t, Remove(path))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// TestRemoveEndsCopies: processes with mounts of their own, such as a private
// libvirtd, hold copies of the namespace's mount, which must not keep it alive.
func TestRemoveEndsCopies(t *testing.T) {
	dir := t.TempDir()
	outer, inner := filepath.Join(dir, "outer"), filepath.Join(dir, "inner")
	must(t, Create(outer))
	defer func() { must(t, Remove(outer)) }()
	must(t, Create(inner))

	other := exec.CommandContext(t.Context(), "sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	must(t, other.Start())
	defer func() {
		must(t, other.Process.Kill())
		if err := other.Wait(); err == nil {
			t.Error("the other process ended by itself")
		}
	}()

	target, err := os.Open(inner)
	must(t, err)
	must(t, Do(outer, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there", PeerNamespace: netlink.NsFd(target.Fd()),
		})
	}))
	must(t, target.Close())
	must(t, Remove(inner))

	// The veth goes when the last reference to the inner namespace has gone.
	h, err := Netlink(outer)
	must(t, err)
	defer h.Close()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := h.LinkByName("here"); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the namespace lives on in another process's mounts")
		}
	}
}
