//go:build faults

package faults

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/tests/node"
)

// stateRows are about what vmruntime keeps on disk, and about the clock.
func stateRows() []row {
	rows := []row{
		{component: "state folder", moment: "RunPodSandbox to StartContainer", fault: "disk full", then: "refused; comes up when there is room", brief: true, run: fullAtStart},
		{component: "state folder", moment: "StopContainer to RemovePodSandbox", fault: "disk full", then: "the pod goes", run: fullAtEnd},
		{component: "state folder", moment: "VM ends", fault: "disk full", then: "told as exited when there is room", run: fullAtExit},
		{component: "state folder", moment: "vmruntime starts", fault: "read-only", then: "one sentence; VMs go on", brief: true, run: readOnly},
		{component: "clock", moment: "pod runs and starts anew", fault: "one hour back", then: "the newest container is the newest; no end before its begin", brief: true, run: clockJump("-1h")},
		{component: "clock", moment: "pod runs and starts anew", fault: "one hour forward", then: "the same", run: clockJump("1h")},
	}
	for _, d := range []struct {
		fault  string
		damage func(path string) error
	}{
		{"its middle overwritten", overwriteMiddle},
		{"cut short", func(path string) error { return os.Truncate(path, 2*int64(os.Getpagesize())+100) }},
		{"of a newer version", fromTheFuture},
	} {
		rows = append(rows, row{
			component: "metadata.db", moment: "vmruntime starts", fault: d.fault, then: "one sentence; the file is left; VMs go on",
			brief: d.fault == "its middle overwritten", run: badMetadata(d.damage),
		})
	}
	rows = append(
		rows,
		row{component: "metadata.db", moment: "vmruntime starts", fault: "one record unreadable", then: "one sentence; nothing is removed", brief: true, run: badMetadata(spoilRecord)},
		row{component: "image index", moment: "vmruntime starts", fault: "its middle overwritten", then: "made anew from the images; VMs go on", run: badIndex},
		row{component: "image index", moment: "vmruntime starts", fault: "of a newer version", then: "one sentence; the file is left; VMs go on", run: futureIndex},
	)
	return rows
}

// fill leaves no room in the state folder; the function that it returns makes room.
func (r *rig) fill(t *testing.T) (makeRoom func()) {
	t.Helper()
	path := filepath.Join(r.n.VMStateDir(), "filler")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for size := len(block); size > 0; {
		if _, err := file.Write(block[:size]); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

func fullAtStart(t *testing.T, r *rig, p *pod) {
	makeRoom := r.fill(t)
	defer makeRoom()
	for range 3 {
		if err := p.sync(deadline(t)); err == nil || errors.Is(err, errNotSeenYet) {
			t.Fatalf("a pod was started on a full disk: %v", err)
		} else if !strings.Contains(err.Error(), "no space left") {
			t.Errorf("on a full disk the refusal does not say so: %v", err)
		}
	}
	r.answersSoon(t, r.cri)
	makeRoom()
	r.comesUp(t, p)
}

func fullAtEnd(t *testing.T, r *rig, p *pod) {
	r.up(t, p)
	makeRoom := r.fill(t)
	defer makeRoom()
	if err := p.remove(deadline(t)); err != nil {
		t.Error(err)
	}
}

func fullAtExit(t *testing.T, r *rig, p *pod) {
	container := r.up(t, p)
	makeRoom := r.fill(t)
	defer makeRoom()
	r.signalQEMU(t, container.GetId(), syscall.SIGKILL)
	makeRoom()
	endedBadly(t, p, container.GetId())
	r.comesUp(t, p)
}

// refuses starts vmruntime, which must end by itself with one sentence that contains
// all words, and change nothing.
func (r *rig) refuses(t *testing.T, argv []string, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(deadline(t), rowTime/2)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &said
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("vmruntime ended with %v, want exit status 1:\n%s", err, said.String())
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	last := lines[len(lines)-1]
	for _, word := range words {
		if !strings.Contains(last, word) {
			t.Errorf("vmruntime does not say %q but: %s", word, last)
		}
	}
	if strings.Contains(said.String(), "goroutine ") {
		t.Errorf("vmruntime panicked:\n%s", said.String())
	}
}

// stopped ends vmruntime, lets do happen, and starts vmruntime again.
func (r *rig) stopped(t *testing.T, p *pod, do func(argv []string)) {
	t.Helper()
	before := r.up(t, p)
	if err := r.n.Terminate(deadline(t), node.VMRuntime); err != nil {
		t.Fatal(err)
	}
	argv, err := r.n.Command(node.VMRuntime)
	if err != nil {
		t.Fatal(err)
	}
	do(argv)
	if err := r.restore(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if after := r.comesUp(t, p); after.GetId() != before.GetId() {
		t.Errorf("the pod's container was %s and is %s", before.GetId(), after.GetId())
	}
}

func readOnly(t *testing.T, r *rig, p *pod) {
	// Bound anew, for a file system with files open for writing cannot be made
	// read-only; QEMU goes on writing.
	const enter = `mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"`
	r.stopped(t, p, func(argv []string) {
		state := r.n.VMStateDir()
		r.refuses(t, append([]string{"unshare", "--mount", "sh", "-c", enter, state}, argv...), state, "read-only file system")
	})
}

func (r *rig) database() string { return layout.Layout{State: r.n.VMStateDir()}.Database() }

// damaged spoils a copy of a file in its place and returns the function that puts the
// file back, after a check that nobody else has changed it.
func damaged(t *testing.T, path string, damage func(string) error) (restore func()) {
	t.Helper()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := damage(path); err != nil {
		t.Fatal(err)
	}
	bad, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, bad) {
			t.Errorf("the refused file was changed: %v", err)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func badMetadata(damage func(string) error) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		r.stopped(t, p, func(argv []string) {
			restore := damaged(t, r.database(), damage)
			r.refuses(t, argv, r.database())
			restore()
		})
	}
}

func overwriteMiddle(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	page := int64(os.Getpagesize())
	_, err = file.WriteAt(bytes.Repeat([]byte{0xa5}, int(info.Size()-2*page)), 2*page)
	return errors.Join(err, file.Close())
}

func fromTheFuture(path string) error {
	return change(path, func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("version"), []byte("99")) })
}

func spoilRecord(path string) error {
	return change(path, func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte("containers"))
		key, _ := bucket.Cursor().First()
		return bucket.Put(key, []byte(`{"id":`))
	})
}

func change(path string, do func(*bolt.Tx) error) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(db.Update(do), db.Close())
}

func (r *rig) index(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.n.VMStateDir(), "images", "*.db"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the image store has the databases %v: %v", found, err)
	}
	return found[0]
}

func futureIndex(t *testing.T, r *rig, p *pod) {
	r.stopped(t, p, func(argv []string) {
		restore := damaged(t, r.index(t), fromTheFuture)
		r.refuses(t, argv, r.index(t), "newer")
		restore()
	})
}

// badIndex has the image store find out by itself what it has.
func badIndex(t *testing.T, r *rig, p *pod) {
	before, err := r.direct.ListImages(deadline(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	index := r.index(t)
	r.stopped(t, p, func([]string) {
		if err := overwriteMiddle(index); err != nil {
			t.Fatal(err)
		}
	})
	if err := os.Remove(index + ".corrupt"); err != nil {
		t.Errorf("the damaged index was not kept for people: %v", err)
	}
	after, err := r.direct.ListImages(deadline(t), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(before.GetImages()) == 0 || len(after.GetImages()) != len(before.GetImages()) {
		t.Errorf("the images were %v and are %v", before.GetImages(), after.GetImages())
	}
}

func clockJump(by string) func(*testing.T, *rig, *pod) {
	return func(t *testing.T, r *rig, p *pod) {
		ctx := deadline(t)
		armed := failpoint.EnvFile + "=" + r.armed
		before := r.up(t, p)
		r.n.SetEnv(node.VMRuntime, armed, failpoint.EnvClock+"="+by)
		defer r.n.SetEnv(node.VMRuntime, armed)
		if err := r.n.Restart(ctx, node.VMRuntime); err != nil {
			t.Fatal(err)
		}
		if same := r.comesUp(t, p); same.GetId() != before.GetId() {
			t.Errorf("the pod's container was %s and is %s", before.GetId(), same.GetId())
		}
		r.signalQEMU(t, before.GetId(), syscall.SIGKILL)
		endedBadly(t, p, before.GetId())
		second := r.comesUp(t, p)
		if second.GetId() == before.GetId() || second.GetCreatedAt() <= before.GetCreatedAt() {
			t.Errorf("after container %v came %v", before, second)
		}
		// A sandbox of the same pod, as after a reboot.
		if err := p.stopSandbox(ctx, second.GetPodSandboxId()); err != nil {
			t.Fatal(err)
		}
		r.comesUp(t, p)
		// Back in time, with all that is there.
		r.n.SetEnv(node.VMRuntime, armed)
		if err := r.n.Restart(ctx, node.VMRuntime); err != nil {
			t.Fatal(err)
		}
		r.comesUp(t, p)
	}
}

// rebootRow is apart from the others: it would end the witnesses, too.
func rebootRow() row {
	return row{
		alone:     true,
		component: "machine", moment: "both kinds of pod run", fault: "reboot: all processes and /run are gone",
		then: "VMs are told as ended, the pods come up in new sandboxes", run: reboot,
	}
}

func reboot(t *testing.T, r *rig, p *pod) {
	ctx := deadline(t)
	before := r.up(t, p)
	cont := r.pod(containerKind)
	contBefore, err := cont.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.n.Crash(ctx); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.n.StartDaemon(ctx, node.Registry), r.n.StartDaemon(ctx, node.ImageSite), r.restore(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := r.foreign.restart(ctx); err != nil {
		t.Fatal(err)
	}
	status, err := p.status(ctx, before.GetId())
	if err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the VM from before the reboot is %v, %v", status, err)
	}
	after := r.comesUp(t, p)
	if after.GetPodSandboxId() == before.GetPodSandboxId() || after.GetId() == before.GetId() {
		t.Errorf("before the reboot the container was %v, after it %v", before, after)
	}
	contAfter, err := cont.run(deadline(t))
	if err != nil || contAfter.GetPodSandboxId() == contBefore.GetPodSandboxId() {
		t.Errorf("before the reboot the other pod's container was %v, after it %v, %v", contBefore, contAfter, err)
	}
	if err := cont.remove(deadline(t)); err != nil {
		t.Error(err)
	}
}
