//go:build integration

package guestexec_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/libvirtd"
)

const (
	tinyImage = "../../_tools/images/tiny.qcow2" // made by hack/setup.sh
	emulator  = "/usr/bin/qemu-system-x86_64"

	// bootTime is many times what an emulated guest needs on an idle machine.
	bootTime = 4 * time.Minute
)

// realGuest is a VM under a private libvirtd, shared by all tests: an emulated guest
// takes long to boot.
type realGuest struct {
	dir      string
	libvirtd *libvirtd.Instance
	client   *libvirttools.Client
	domain   libvirttools.Domain
	helper   string
}

var shared struct {
	once  sync.Once
	guest *realGuest
	err   error
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(withGuest{m}) }

// withGuest ends the shared guest before goroutines are counted.
type withGuest struct{ *testing.M }

func (m withGuest) Run() int {
	code := m.M.Run()
	if err := shared.guest.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// bootedGuest returns the shared guest, whose agent answers.
func bootedGuest(t *testing.T) *realGuest {
	t.Helper()
	shared.once.Do(func() { shared.guest, shared.err = startGuest() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.guest.awaitAgent(t)
	return shared.guest
}

func startGuest() (g *realGuest, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootTime)
	defer cancel()
	dir, err := os.MkdirTemp("/var/tmp", "gxi") // short, for the sockets in it
	if err != nil {
		return nil, err
	}
	g = &realGuest{dir: dir, helper: filepath.Join(dir, "vmguest")}
	if err := os.Chmod(dir, 0o711); err != nil {
		return g, err
	}
	if _, err := os.Stat(tinyImage); err != nil {
		return g, fmt.Errorf("%w; run hack/setup.sh test, which builds the tiny guest image", err)
	}
	disk := filepath.Join(dir, "root.qcow2")
	for _, argv := range [][]string{
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", g.helper, "../../cmd/vmguest"},
		{"qemu-img", "convert", "-O", "qcow2", tinyImage, disk},
	} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return g, fmt.Errorf("%v: %w: %s", argv, err, out)
		}
	}
	if g.libvirtd, err = libvirtd.Start(ctx, libvirtd.Options{Dir: filepath.Join(dir, "l")}); err != nil {
		return g, err
	}
	g.client = libvirttools.NewClient(libvirttools.Options{URI: g.libvirtd.URI, Owner: dir, Logger: discard()})
	id := uuid.NewString()
	g.domain = libvirttools.Domain{
		UUID: id, Name: "test-" + id, Owner: dir,
		SandboxID: strings.Repeat("a1", 32), ContainerID: strings.ReplaceAll(id+id, "-", ""),
		MemoryBytes: 128 << 20, VCPUs: 1, Accel: libvirttools.AccelTCG, Emulator: emulator,
		Disks:       []libvirttools.Disk{{Path: disk, Format: libvirttools.FormatQCOW2}},
		Console:     libvirttools.Console{Socket: filepath.Join(dir, "con.sock"), Log: filepath.Join(dir, "con.log")},
		AgentSocket: filepath.Join(dir, "agent.sock"),
		ExecSocket:  filepath.Join(dir, "exec.sock"),
	}
	xml, err := libvirttools.BuildXML(g.domain)
	if err != nil {
		return g, err
	}
	if err := g.client.Define(ctx, xml); err != nil {
		return g, err
	}
	return g, g.client.Start(ctx, id)
}

func (g *realGuest) stop() error {
	if g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if g.client != nil {
		err = g.client.Destroy(ctx, g.domain.UUID)
		_ = g.client.Close()
	}
	if g.libvirtd != nil {
		if stopErr := g.libvirtd.Stop(ctx); err == nil {
			err = stopErr
		}
	}
	if removeErr := os.RemoveAll(g.dir); err == nil {
		err = removeErr
	}
	return err
}

// commander is what pkg/criserver is to the agent: it gives libvirt's errors the
// meaning that guestagent asks for.
type commander struct{ client *libvirttools.Client }

func (c commander) AgentCommand(ctx context.Context, uuid, command string) (string, error) {
	answer, err := c.client.AgentCommand(ctx, uuid, command)
	return answer, guestagent.Classify(err, libvirttools.ErrAgentSilent, libvirttools.ErrAgentRefused)
}

func (g *realGuest) agent() *guestagent.Agent {
	return guestagent.New(commander{g.client}, g.domain.UUID, "VM test")
}

func (g *realGuest) vm() guestexec.VM {
	return guestexec.VM{ID: "test", Name: "VM test", Socket: g.domain.ExecSocket, Agent: g.agent()}
}

func (g *realGuest) executor(t *testing.T) *guestexec.Executor {
	t.Helper()
	e := guestexec.New(guestexec.Options{Helper: g.helper, SocketOwners: libvirtOwners(t), Logger: discard()})
	t.Cleanup(e.Close)
	return e
}

// libvirtOwners are root, who is libvirtd and listens, and QEMU's user, who is given
// the file.
func libvirtOwners(t *testing.T) []int {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "id", "-u", "libvirt-qemu").Output()
	if err != nil {
		t.Fatalf("user libvirt-qemu: %v; install libvirt-daemon-system", err)
	}
	var uid int
	if _, err := fmt.Sscan(string(bytes.TrimSpace(out)), &uid); err != nil {
		t.Fatal(err)
	}
	return []int{0, uid}
}

func (g *realGuest) awaitAgent(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := g.agent().Ping(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			console, _ := os.ReadFile(g.domain.Console.Log)
			t.Fatalf("the guest's agent does not answer: %v; its console:\n%s", err, console[max(0, len(console)-2000):])
		}
	}
}

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
