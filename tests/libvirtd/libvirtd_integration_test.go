//go:build integration

package libvirtd_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/libvirtd"
	"github.com/ambipod/ambipod/tests/process"
)

// guest is paused from the start, so it needs no disk and no working firmware.
const guest = `<domain type='qemu'><name>NAME</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>`

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shortDir is a folder whose path leaves room for sockets; t.TempDir has the
// test's name in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lv") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

func virsh(t *testing.T, i *libvirtd.Instance, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(deadline(t), "virsh", append([]string{"-q", "-c", i.URI}, args...)...)

	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func start(t *testing.T, o libvirtd.Options) *libvirtd.Instance {
	t.Helper()
	i, err := libvirtd.Start(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := i.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return i
}

func startGuest(t *testing.T, i *libvirtd.Instance, name string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domain.xml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(guest, "NAME", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	virsh(t, i, "create", "--paused", file)
}

func guestProcess(t *testing.T, i *libvirtd.Instance, name string) process.Process {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(i.Dir, "run", "qemu", name+".pid"))
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

func TestInstanceLifecycle(t *testing.T) {
	dir := shortDir(t)
	i := start(t, libvirtd.Options{Dir: dir})
	startGuest(t, i, "survivor")

	if _, err := libvirtd.Start(deadline(t), libvirtd.Options{Dir: dir}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second start in %s: %v, want ErrAlreadyExists", dir, err)
	}

	again, err := libvirtd.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.KillLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if again.Libvirtd.Alive() || !again.Virtlogd.Alive() {
		t.Fatalf("after the kill of libvirtd: libvirtd alive=%v, virtlogd alive=%v",
			again.Libvirtd.Alive(), again.Virtlogd.Alive())
	}
	if err := again.StartLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := virsh(t, again, "domstate", "survivor"); got != "paused" {
		t.Errorf("guest after restart of libvirtd is %q, want paused", got)
	}

	guest := guestProcess(t, again, "survivor")
	if err := again.Stop(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if guest.Alive() {
		t.Error("the guest's process outlived Stop")
	}
	if again.Libvirtd.Alive() || again.Virtlogd.Alive() {
		t.Error("a daemon outlived Stop")
	}
	if err := again.Stop(deadline(t)); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

func TestTwoInstancesAreApart(t *testing.T) {
	a := start(t, libvirtd.Options{Dir: shortDir(t)})
	b := start(t, libvirtd.Options{Dir: shortDir(t)})
	startGuest(t, a, "only-in-a")
	if got := virsh(t, b, "list", "--all", "--name"); got != "" {
		t.Errorf("the second instance lists %q", got)
	}
	if err := b.Stop(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := virsh(t, a, "domstate", "only-in-a"); got != "paused" {
		t.Errorf("guest of the first instance is %q after the second's stop", got)
	}
}

func TestWrapperRunsTheDaemons(t *testing.T) {
	dir := shortDir(t)
	i := start(t, libvirtd.Options{Dir: dir, Wrapper: []string{"env", "AMBIPOD_TEST_MARK=" + dir}})
	for _, p := range []process.Process{i.Libvirtd, i.Virtlogd} {
		env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "environ"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(env), "AMBIPOD_TEST_MARK="+dir) {
			t.Errorf("process %d was not started by the wrapper", p.PID)
		}
	}
}
