//go:build integration

package libvirttools_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"libvirt.org/go/libvirtxml"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/tests/bootsector"
)

func TestCheck(t *testing.T) {
	info, err := client(t).Check(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	wantQEMU := command(t, emulator, "--version")
	if !strings.Contains(wantQEMU, "version "+info.QEMUVersion) {
		t.Errorf("QEMU %q, want the one of %q", info.QEMUVersion, wantQEMU)
	}
	if want := strings.TrimSpace(command(t, "libvirtd", "--version")); !strings.HasSuffix(want, info.LibvirtVersion) {
		t.Errorf("libvirt %q, want the one of %q", info.LibvirtVersion, want)
	}
}

func TestLifecycle(t *testing.T) {
	c, ctx := client(t), deadline(t)
	g := newGuest(t, c)
	if err := c.Define(ctx, xmlOf(t, g.Domain)); err != nil {
		t.Errorf("second Define: %v", err)
	}
	wantState(t, c, g.UUID, libvirttools.PhaseShutOff, libvirttools.ReasonUnknown)
	for name, call := range map[string]func() error{
		"Shutdown": func() error { return c.Shutdown(ctx, g.UUID) },
		"Destroy":  func() error { return c.Destroy(ctx, g.UUID) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s of a domain that never ran: %v", name, err)
		}
	}

	g.boot(t, c)
	wantState(t, c, g.UUID, libvirttools.PhaseRunning, libvirttools.ReasonBooted)
	if err := c.Start(ctx, g.UUID); err != nil {
		t.Errorf("second Start: %v", err)
	}
	if err := c.Undefine(ctx, g.UUID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Undefine of a running domain: %v, want ErrFailedPrecondition", err)
	}

	// Repeated, as a caller does that cannot know whether the guest noticed.
	for range 2 {
		if err := c.Shutdown(ctx, g.UUID); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	}
	wantState(t, c, g.UUID, libvirttools.PhaseShutOff, libvirttools.ReasonShutdown)
	if !strings.Contains(g.console(t), "BUTTON") {
		t.Error("the guest did not see its power button")
	}

	g.boot(t, c)
	for range 2 {
		if err := c.Destroy(ctx, g.UUID); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	wantState(t, c, g.UUID, libvirttools.PhaseShutOff, libvirttools.ReasonDestroyed)

	for range 2 {
		if err := c.Undefine(ctx, g.UUID); err != nil {
			t.Errorf("Undefine: %v", err)
		}
	}
	if _, err := c.State(ctx, g.UUID); !errdefs.IsNotFound(err) {
		t.Errorf("State of an absent domain: %v, want ErrNotFound", err)
	}
	if err := c.Start(ctx, g.UUID); !errdefs.IsNotFound(err) {
		t.Errorf("Start of an absent domain: %v, want ErrNotFound", err)
	}
	if err := c.Shutdown(ctx, g.UUID); err != nil {
		t.Errorf("Shutdown of an absent domain: %v", err)
	}
	if err := c.Destroy(ctx, g.UUID); err != nil {
		t.Errorf("Destroy of an absent domain: %v", err)
	}
}

// TestUndefineTakesSavedMemoryAlong: nor do the descriptions of snapshots, which people
// make by virsh, keep libvirt from forgetting a domain.
func TestUndefineTakesSavedMemoryAlong(t *testing.T) {
	c := client(t)
	g := newGuest(t, c)
	g.boot(t, c)
	virsh(t, daemon(t), "snapshot-create-as", g.Name, "before")
	virsh(t, daemon(t), "managedsave", g.Name)
	saved := filepath.Join(daemon(t).Dir, "lib", "qemu", "save", g.Name+".save")
	if _, err := os.Stat(saved); err != nil {
		t.Fatal(err)
	}
	if err := c.Undefine(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(saved); !os.IsNotExist(err) {
		t.Errorf("saved memory is still there: %v", err)
	}
}

// QEMU's user may write the overlay, but must not come to own the image that all
// VMs share, and no write may reach it.
func TestBaseImageStaysUntouched(t *testing.T) {
	c := client(t)
	g := newGuest(t, c)
	before, err := os.ReadFile(g.base)
	if err != nil {
		t.Fatal(err)
	}
	g.boot(t, c)
	if owner(t, g.base) != 0 {
		t.Errorf("the base image belongs to user %d while the VM runs", owner(t, g.base))
	}
	if owner(t, g.overlay) == 0 {
		t.Error("the overlay belongs to root while the VM runs, so QEMU runs as root or cannot write")
	}
	g.tell(t, bootsector.Write)
	eventually(t, "the guest to write", func() bool { return strings.Contains(g.console(t), "WROTE") })
	if err := c.Destroy(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(g.base)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the guest's write reached the base image")
	}
	if owner(t, g.base) != 0 {
		t.Errorf("the base image belongs to user %d after the VM", owner(t, g.base))
	}
}

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

// What libvirt makes of our XML: nothing on TCP, nothing in vmwrapper's PCI slots,
// no probing, and the environment of the emulator.
func TestLiveXML(t *testing.T) {
	c := client(t)
	g := describeGuest(t)
	g.Env = map[string]string{"AMBIPOD_TEST": "a b,c"}
	g.Screen = true
	define(t, c, g)
	g.boot(t, c)
	var live libvirtxml.Domain
	if err := live.Unmarshal(virsh(t, daemon(t), "dumpxml", g.Name)); err != nil {
		t.Fatal(err)
	}
	for _, ctl := range live.Devices.Controllers {
		if ctl.Address != nil && ctl.Address.PCI != nil && *ctl.Address.PCI.Slot >= libvirttools.FirstNICSlot {
			t.Errorf("controller %s is in vmwrapper's slot %#x", ctl.Type, *ctl.Address.PCI.Slot)
		}
	}
	if len(live.Devices.Graphics) != 1 || live.Devices.Graphics[0].VNC.Port > 0 {
		t.Errorf("screen: %+v, want one without a TCP port", live.Devices.Graphics)
	}
	if live.Features.TCG == nil || live.Features.TCG.TBCache.Size != 32<<10 {
		t.Errorf("TCG cache: %+v, want 32 MiB in KiB", live.Features.TCG)
	}
	environ, err := os.ReadFile(filepath.Join("/proc", itoa(g.process(t).PID), "environ"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains("\x00"+string(environ), "\x00AMBIPOD_TEST=a b,c\x00") {
		t.Errorf("environment of QEMU: %q", environ)
	}
	cmdline, err := os.ReadFile(filepath.Join("/proc", itoa(g.process(t).PID), "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-sandbox\x00on", "\"free-page-reporting\":true"} {
		if !strings.Contains(string(cmdline), want) {
			t.Errorf("QEMU runs without %q:\n%s", want, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	screen, err := c.OpenScreen(deadline(t), g.UUID)
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	greeting := make([]byte, 4)
	if _, err := io.ReadFull(screen, greeting); err != nil || string(greeting) != "RFB " {
		t.Errorf("the screen says %q, %v; want VNC's greeting", greeting, err)
	}
	picture, err := c.Screenshot(deadline(t), g.UUID)
	if err != nil || picture.MIME != "image/png" || !bytes.HasPrefix(picture.Data, []byte("\x89PNG")) {
		t.Errorf("screenshot of %d bytes, type %q, %v", len(picture.Data), picture.MIME, err)
	}
	described, err := c.Describe(deadline(t), g.UUID)
	if err != nil || !strings.Contains(described, "AMBIPOD_TEST") || strings.Contains(described, "a b,c") {
		t.Errorf("described as %s, %v", described, err)
	}
	virsh(t, daemon(t), "define", "--validate", writeFile(t, xmlOf(t, g.Domain)))
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.xml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStartExplainsWhatFailed(t *testing.T) {
	c := client(t)
	g := newGuest(t, c)
	if err := os.Remove(g.overlay); err != nil {
		t.Fatal(err)
	}
	err := c.Start(deadline(t), g.UUID)
	if err == nil || !strings.Contains(err.Error(), g.overlay) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Start without a disk: %v, want one line that names %s", err, g.overlay)
	}
	wantState(t, c, g.UUID, libvirttools.PhaseShutOff, libvirttools.ReasonFailed)
}

func TestForeignDomainsAreLeftAlone(t *testing.T) {
	c, ctx := client(t), deadline(t)
	mine := newGuest(t, c)
	neighbour := clientOf(t, libvirttools.Options{URI: daemon(t).URI, Owner: "other-node"})
	theirs := describeGuest(t)
	theirs.Owner = "other-node"
	define(t, neighbour, theirs)
	theirs.boot(t, neighbour)
	unmarked := describeGuest(t)
	virsh(t, daemon(t), "define", writeFile(t, withoutMark(t, unmarked.Domain)))
	t.Cleanup(func() {
		out, err := exec.CommandContext(context.Background(), "virsh", "-c", daemon(t).URI, "undefine", unmarked.Name).CombinedOutput()
		if err != nil {
			t.Errorf("undefine: %v: %s", err, out)
		}
	})

	owned, err := c.Owned(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(owned) != 1 || owned[0].UUID != mine.UUID || owned[0].SandboxID != mine.SandboxID ||
		owned[0].ContainerID != mine.ContainerID || owned[0].Name != mine.Name ||
		owned[0].State.Phase != libvirttools.PhaseShutOff {
		t.Errorf("Owned: %+v, want only %+v", owned, mine.Domain)
	}
	for _, foreign := range []*guest{theirs, unmarked} {
		before := virsh(t, daemon(t), "dumpxml", foreign.Name)
		for name, call := range map[string]func() error{
			"Start":    func() error { return c.Start(ctx, foreign.UUID) },
			"Shutdown": func() error { return c.Shutdown(ctx, foreign.UUID) },
			"Destroy":  func() error { return c.Destroy(ctx, foreign.UUID) },
			"Undefine": func() error { return c.Undefine(ctx, foreign.UUID) },
		} {
			if err := call(); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s of a foreign domain: %v, want ErrFailedPrecondition", name, err)
			}
		}
		thief := mine.Domain
		thief.UUID = foreign.UUID
		if err := c.Define(ctx, xmlOf(t, thief)); !errdefs.IsAlreadyExists(err) {
			t.Errorf("Define over a foreign UUID: %v, want ErrAlreadyExists", err)
		}
		thief = describeGuest(t).Domain
		thief.Name = foreign.Name
		if err := c.Define(ctx, xmlOf(t, thief)); !errdefs.IsAlreadyExists(err) {
			t.Errorf("Define over a foreign name: %v, want ErrAlreadyExists", err)
		}
		if after := virsh(t, daemon(t), "dumpxml", foreign.Name); after != before {
			t.Errorf("a foreign domain changed from\n%s\nto\n%s", before, after)
		}
	}
	if err := c.Define(ctx, withoutMark(t, describeGuest(t).Domain)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Define without a mark: %v, want ErrInvalidArgument", err)
	}
}

func withoutMark(t *testing.T, d libvirttools.Domain) string {
	t.Helper()
	var parsed libvirtxml.Domain
	if err := parsed.Unmarshal(xmlOf(t, d)); err != nil {
		t.Fatal(err)
	}
	parsed.Metadata = nil
	text, err := parsed.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A list that silently lacks a domain would let a collector of garbage delete the
// domain's disk.
func TestOwnedFailsClosed(t *testing.T) {
	c := client(t)
	g := newGuest(t, c)
	virsh(t, daemon(t), "metadata", g.Name, "--config", "--uri", "https://vm.ambipod.io/libvirt/1",
		"--key", "ambipod", "--set", "<vm owner='"+testOwner+"'/>")
	if _, err := c.Owned(deadline(t)); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), g.UUID) {
		t.Errorf("Owned with a spoilt mark: %v, want ErrDataLoss that names %s", err, g.UUID)
	}
	if err := c.Define(deadline(t), xmlOf(t, g.Domain)); err == nil {
		t.Error("Define silently replaced a domain whose mark is unreadable")
	}
	virsh(t, daemon(t), "undefine", g.Name)
}

func TestStats(t *testing.T) {
	c := client(t)
	g, idle := newGuest(t, c), newGuest(t, c)
	g.boot(t, c)
	if _, err := c.Stats(deadline(t), idle.UUID); !errdefs.IsUnavailable(err) {
		t.Errorf("Stats of a domain that does not run: %v", err)
	}
	if _, err := c.Stats(deadline(t), describeGuest(t).UUID); !errdefs.IsNotFound(err) {
		t.Errorf("Stats of a domain that does not exist: %v", err)
	}
	first := statsOf(t, c, g.UUID)
	g.tell(t, bootsector.Write)
	eventually(t, "the guest to write", func() bool { return strings.Contains(g.console(t), "WROTE") })
	second := statsOf(t, c, g.UUID)
	root := second.Disks[0]
	if root.WriteBytes != first.Disks[0].WriteBytes+512 || root.WriteRequests != first.Disks[0].WriteRequests+1 {
		t.Errorf("a write of 512 bytes took the counters from %+v to %+v", first.Disks[0], root)
	}
	if root.ReadBytes == 0 || root.Capacity != bootsector.Size || root.Target != "sda" || root.Path != g.overlay {
		t.Errorf("root disk: %+v", root)
	}
	if second.Guest != nil {
		t.Errorf("a guest without a balloon driver reported %+v", second.Guest)
	}
}

func statsOf(t *testing.T, c *libvirttools.Client, uuid string) libvirttools.Stats {
	t.Helper()
	stats, err := c.Stats(deadline(t), uuid)
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.Disks) != 2 {
		t.Fatalf("statistics: %+v, want those of two disks", stats)
	}
	return stats
}

// A QEMU that is stopped costs its own numbers and nobody else's.
func TestStatsOfAStuckQEMU(t *testing.T) {
	c := client(t)
	stuck, well := newGuest(t, c), newGuest(t, c)
	stuck.boot(t, c)
	well.boot(t, c)
	qemu := stuck.process(t)
	if err := qemu.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = qemu.Signal(syscall.SIGCONT) })
	ctx, cancel := context.WithTimeout(deadline(t), time.Second)
	defer cancel()
	if _, err := c.Stats(ctx, stuck.UUID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stats of a stopped QEMU: %v", err)
	}
	if _, err := c.Stats(deadline(t), stuck.UUID); !errdefs.IsUnavailable(err) {
		t.Errorf("Stats of a QEMU that owes an answer: %v", err)
	}
	statsOf(t, c, well.UUID)
	wantState(t, c, stuck.UUID, libvirttools.PhaseRunning, libvirttools.ReasonBooted)
}

func TestAgentAbsent(t *testing.T) {
	c := client(t)
	g := newGuest(t, c)
	g.boot(t, c)
	if _, err := c.AgentCommand(deadline(t), g.UUID, `{"execute":"guest-ping"}`); !errdefs.IsUnavailable(err) {
		t.Errorf("AgentCommand without an agent: %v, want ErrUnavailable", err)
	}
}

func TestNoLibvirtd(t *testing.T) {
	uri := "qemu+unix:///system?socket=" + filepath.Join(t.TempDir(), "absent")
	c := clientOf(t, libvirttools.Options{URI: uri})
	_, err := c.Check(deadline(t))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), uri) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Check without libvirtd: %v, want one line with the URI, ErrUnavailable", err)
	}
	ctx, cancel := context.WithTimeout(deadline(t), time.Second)
	defer cancel()
	if err := c.Watch(ctx, func(libvirttools.Event) { t.Error("an event from nowhere") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Watch without libvirtd: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Owned(deadline(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("a call after Close: %v, want ErrUnavailable", err)
	}
}
