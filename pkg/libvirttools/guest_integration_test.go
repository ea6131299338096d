//go:build integration

package libvirttools_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/libvirtd"
	"github.com/ambipod/ambipod/tests/process"
)

const (
	testOwner = "test-node"
	emulator  = "/usr/bin/qemu-system-x86_64"
)

// guest is a VM of a test with the files that it uses.
type guest struct {
	libvirttools.Domain
	base    string // raw image under the overlay
	overlay string
}

// client returns a Client of the shared libvirtd.
func client(t *testing.T) *libvirttools.Client {
	t.Helper()
	return clientOf(t, libvirttools.Options{URI: daemon(t).URI, Owner: testOwner})
}

func clientOf(t *testing.T, o libvirttools.Options) *libvirttools.Client {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	c := libvirttools.NewClient(o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newGuest makes the files of a boot-sector guest and defines it. Its end takes the
// domain away.
func newGuest(t *testing.T, c *libvirttools.Client) *guest {
	t.Helper()
	g := describeGuest(t)
	define(t, c, g)
	return g
}

func define(t *testing.T, c *libvirttools.Client, g *guest) {
	t.Helper()
	if err := c.Define(deadline(t), xmlOf(t, g.Domain)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Destroy(ctx, g.UUID); err != nil {
			t.Error(err)
		}
		if err := c.Undefine(ctx, g.UUID); err != nil {
			t.Error(err)
		}
	})
}

func xmlOf(t *testing.T, d libvirttools.Domain) string {
	t.Helper()
	text, err := libvirttools.BuildXML(d)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func describeGuest(t *testing.T) *guest {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "vm") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	g := &guest{base: filepath.Join(dir, "base"), overlay: filepath.Join(dir, "root.qcow2")}
	if err := bootsector.WriteDisk(deadline(t), g.base); err != nil {
		t.Fatal(err)
	}
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", g.base, g.overlay)
	iso := filepath.Join(dir, "config.iso")
	if err := os.WriteFile(iso, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Domain = libvirttools.Domain{
		UUID: id, Name: "test-" + id, Title: "test/" + t.Name(), Owner: testOwner,
		SandboxID: strings.Repeat("a1", 32), ContainerID: strings.ReplaceAll(id+id, "-", ""),
		MemoryBytes: 32 << 20, VCPUs: 1, Accel: libvirttools.AccelTCG, Emulator: emulator,
		Disks: []libvirttools.Disk{
			{
				Path: g.overlay, Format: libvirttools.FormatQCOW2,
				Backing: &libvirttools.Disk{Path: g.base, Format: libvirttools.FormatRaw},
			},
			{Path: iso, Format: libvirttools.FormatRaw, CDROM: true},
		},
		Console:     libvirttools.Console{Socket: filepath.Join(dir, "con.sock"), Log: filepath.Join(dir, "con.log")},
		AgentSocket: filepath.Join(dir, "agent.sock"),
	}
	return g
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(deadline(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// boot starts the guest and waits until it says so.
func (g *guest) boot(t *testing.T, c *libvirttools.Client) {
	t.Helper()
	before := strings.Count(g.console(t), bootsector.Ready)
	if err := c.Start(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest to boot from its disk", func() bool {
		return strings.Count(g.console(t), bootsector.Ready) > before
	})
}

func (g *guest) console(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(g.Console.Log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// tell types a command on the guest's console.
func (g *guest) tell(t *testing.T, command string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(deadline(t), "unix", g.Console.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(command)); err != nil {
		t.Fatal(err)
	}
}

// process is the guest's QEMU.
func (g *guest) process(t *testing.T) process.Process {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(daemon(t).Dir, "run", "qemu", g.Name+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Find(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func eventually(t *testing.T, what string, ready func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			t.Fatalf("gave up waiting for %s", what)
		case <-tick.C:
		}
	}
}

func wantState(t *testing.T, c *libvirttools.Client, id string, phase libvirttools.Phase, reason libvirttools.Reason) {
	t.Helper()
	var got libvirttools.State
	eventually(t, fmt.Sprintf("domain %s to be %s (%s)", id, phase, reason), func() bool {
		var err error
		got, err = c.State(deadline(t), id)
		if err != nil {
			t.Fatal(err)
		}
		return got.Phase == phase
	})
	if got.Reason != reason {
		t.Errorf("domain is %s for the reason %q, want %q", got.Phase, got.Reason, reason)
	}
}

func virsh(t *testing.T, i *libvirtd.Instance, args ...string) string {
	t.Helper()
	return command(t, "virsh", append([]string{"-q", "-c", i.URI}, args...)...)
}
