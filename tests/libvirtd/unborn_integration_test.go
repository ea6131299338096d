//go:build integration

package libvirtd_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ambipod/ambipod/tests/libvirtd"
	"github.com/ambipod/ambipod/tests/node"
)

// ownCommand has a command line of its own, as Ambipod's domains have, and memory such as
// they have with shared folders.
const ownCommand = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>NAME</name>
<metadata>MARK</metadata><memory unit='MiB'>32</memory><memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><os><type arch='x86_64' machine='pc'>hvm</type></os>
<qemu:commandline><qemu:env name='SOME' value='thing'/></qemu:commandline></domain>`

// mark is that of a vmruntime whose state folder is OWNER.
const mark = `<ambipod:vm xmlns:ambipod='https://vm.ambipod.io/libvirt/1' owner='OWNER' sandbox='s' container='c'/>`

const (
	unbornOurs   = "ambipod-0123456789ab-ours"
	unbornTheirs = "ambipod-ba9876543210-theirs"
)

// hook holds up the start of a domain until virtlogd stands still.
const hook = `#!/bin/sh
cat >/dev/null
[ "$2" = start ] || exit 0
touch DIR/starts-"$1"
while [ ! -e DIR/go ]; do sleep 0.1; done
`

// TestKilledBeforeQEMUIsStarted: a libvirtd that is killed when it has noted a domain and
// has not started its QEMU leaves a domain that no other can end. Ambipod's are freed of
// that; others' are left alone.
func TestKilledBeforeQEMUIsStarted(t *testing.T) {
	dir := shortDir(t)
	hooks := filepath.Join(dir, "etc", "hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hooks, "qemu"), []byte(strings.ReplaceAll(hook, "DIR", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	i := startForgetting(t, dir)
	makeVM(t, i, "0123456789ab")
	defineMarked(t, i, unbornOurs, stateDir(i))
	defineMarked(t, i, unbornTheirs, "/somewhere/else")
	killBeforeQEMU(t, i, unbornOurs, unbornTheirs)

	theirs, err := os.ReadFile(note(i, unbornTheirs))
	if err != nil {
		t.Fatal(err)
	}
	if err := i.StartLibvirtd(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := virsh(t, i, "domstate", unbornOurs); got != "shut off" {
		t.Errorf("the domain whose QEMU was not started is %q", got)
	}
	if err := difference(nil, remains(t, i, unbornOurs)); err != nil {
		t.Errorf("of it: %v", err)
	}
	virsh(t, i, "start", "--paused", unbornOurs)
	virsh(t, i, "destroy", unbornOurs)
	if after, err := os.ReadFile(note(i, unbornTheirs)); err != nil || !bytes.Equal(after, theirs) {
		t.Errorf("what libvirtd has noted of somebody else's domain was changed: %v\n%s", err, after)
	}
}

// stateDir is that of the vmruntime whose VMs the instance runs.
func stateDir(i *libvirtd.Instance) string { return filepath.Join(i.Dir, "state") }

// makeVM makes the folder of a VM whose ID begins so.
func makeVM(t *testing.T, i *libvirtd.Instance, start string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(stateDir(i), "vms", start+strings.Repeat("0", 64-len(start))), 0o755))
}

// startForgetting starts libvirtd as the node's image does.
func startForgetting(t *testing.T, dir string) *libvirtd.Instance {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return start(t, libvirtd.Options{
		Dir: dir, Inner: []string{filepath.Join(top, "images", "node", "rootfs", "usr", "libexec", "ambipod", "forget-unborn")},
		Env: []string{"AMBIPOD_STATE_DIR=" + filepath.Join(dir, "state")},
	})
}

// defineMarked defines a domain of an owner.
func defineMarked(t *testing.T, i *libvirtd.Instance, name, owner string) {
	t.Helper()
	define(t, i, strings.NewReplacer("NAME", name, "MARK", strings.ReplaceAll(mark, "OWNER", owner)).Replace(ownCommand))
}

// note is where libvirtd notes a domain.
func note(i *libvirtd.Instance, name string) string {
	return filepath.Join(i.Dir, "run", "qemu", name+".xml")
}

func define(t *testing.T, i *libvirtd.Instance, xml string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domain.xml")
	if err := os.WriteFile(file, []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	virsh(t, i, "define", file)
}

// killBeforeQEMU starts domains and kills libvirtd when it has noted them: what it does
// next is to ask virtlogd, which stands still, how long QEMU's log is.
func killBeforeQEMU(t *testing.T, i *libvirtd.Instance, names ...string) {
	t.Helper()
	var starts sync.WaitGroup
	defer starts.Wait()
	for _, name := range names {
		starts.Go(func() { // it ends with libvirtd
			_ = exec.CommandContext(deadline(t), "virsh", "-q", "-c", i.URI, "start", "--paused", name).Run()
		})
	}
	for _, name := range names {
		must(t, node.Until(deadline(t), name+" is about to start", func(context.Context) error {
			_, err := os.Stat(filepath.Join(i.Dir, "starts-"+name))
			return err
		}))
	}
	must(t, i.Virtlogd.Signal(syscall.SIGSTOP))
	must(t, os.WriteFile(filepath.Join(i.Dir, "go"), nil, 0o600))
	for _, name := range names {
		must(t, node.Until(deadline(t), name+" is noted", func(context.Context) error {
			text, err := os.ReadFile(note(i, name))
			if err == nil && !bytes.Contains(text, []byte(" pid='0'>")) {
				err = fmt.Errorf("with a process already: %s", text)
			}
			return err
		}))
	}
	must(t, i.KillLibvirtd(deadline(t)))
	must(t, i.Virtlogd.Signal(syscall.SIGCONT))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
