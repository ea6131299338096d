//go:build integration

package libvirtd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/libvirtd"
	"github.com/ambipod/ambipod/tests/node"
)

// The domains of TestLeftoversOfAKilledLibvirtd. A VM of ours has a folder in the state
// folder, named by an ID that begins as the middle of its name.
const (
	liveOurs    = "ambipod-aaaaaaaaaaaa-main"
	endingOurs  = "ambipod-bbbbbbbbbbbb-main"
	traceOurs   = "ambipod-cccccccccccc-main"
	endedTheirs = "foreign-ended"
	endingTheir = "ambipod-dddddddddddd-main"
	traceTheirs = "ambipod-eeeeeeeeeeee-main"
)

// TestLeftoversOfAKilledLibvirtd shows what a libvirtd removes that its killed predecessor
// has left, and that forget-unborn removes all else of Ambipod's VMs, and of nobody else's.
func TestLeftoversOfAKilledLibvirtd(t *testing.T) {
	dir := shortDir(t)
	i := startForgetting(t, dir)
	for _, name := range []string{liveOurs, endingOurs, traceOurs} {
		makeVM(t, i, strings.Split(name, "-")[1])
	}
	for name, owner := range map[string]string{
		liveOurs: stateDir(i), endingOurs: stateDir(i), endedTheirs: "", endingTheir: "/somewhere/else",
	} {
		defineMarked(t, i, name, owner)
		virsh(t, i, "start", "--paused", name)
	}
	live, ending := guestProcess(t, i, liveOurs), guestProcess(t, i, endingOurs)
	ended, theirs := guestProcess(t, i, endedTheirs), guestProcess(t, i, endingTheir)
	must(t, i.KillLibvirtd(deadline(t)))

	must(t, ended.Kill(deadline(t)))
	for _, name := range []string{endingOurs, endingTheir} {
		forgetMonitor(t, note(i, name))
	}
	for _, name := range []string{traceOurs, traceTheirs} {
		leaveTraces(t, i, name)
	}
	unharmed := []string{liveOurs, endingTheir, traceTheirs}
	before := map[string][]string{}
	for _, name := range unharmed {
		before[name] = remains(t, i, name)
	}
	must(t, i.StartLibvirtd(deadline(t)))

	// libvirtd takes up its domains one by one.
	must(t, node.Until(deadline(t), "libvirtd itself removes what a domain has left whose QEMU has ended", func(context.Context) error {
		return difference(nil, remains(t, i, endedTheirs))
	}))
	if log, err := os.ReadFile(i.Log()); err != nil || !bytes.Contains(log, []byte("no monitor path")) {
		t.Errorf("libvirtd reads a note without a monitor, which it is said not to do: %v", err)
	}
	for _, name := range unharmed {
		must(t, node.Until(deadline(t), name+" is as it was", func(context.Context) error {
			return difference(before[name], remains(t, i, name))
		}))
	}
	if !live.Alive() || !theirs.Alive() || virsh(t, i, "domstate", liveOurs) != "paused" {
		t.Error("a QEMU that was none of forget-unborn's business has ended")
	}
	for _, name := range []string{endingOurs, traceOurs} {
		if err := difference(nil, remains(t, i, name)); err != nil {
			t.Errorf("of %s: %v", name, err)
		}
	}
	if ending.Alive() {
		t.Error("the QEMU of a domain that libvirtd was ending goes on without any libvirtd")
	}
	virsh(t, i, "start", "--paused", endingOurs)
}

// forgetMonitor makes a note such as libvirtd writes of a domain that it is ending.
func forgetMonitor(t *testing.T, note string) {
	t.Helper()
	text, err := os.ReadFile(note)
	must(t, err)
	without := regexp.MustCompile(`(?m)^ *<monitor path=.*\n`).ReplaceAll(text, nil)
	if bytes.Equal(text, without) {
		t.Fatalf("there is no monitor in\n%s", text)
	}
	must(t, os.WriteFile(note, without, 0o600))
}

// leaveTraces makes what a libvirtd leaves that is killed before it has noted a domain,
// or while it writes, or between removing the note and the PID file. The process of the
// PID file is somebody else's by now.
func leaveTraces(t *testing.T, i *libvirtd.Instance, name string) {
	t.Helper()
	folder := "domain-99-" + name[:20]
	for _, dir := range []string{folder, filepath.Join("channel", "target", folder), filepath.Join("ram", strings.TrimPrefix(folder, "domain-"))} {
		must(t, os.MkdirAll(filepath.Join(i.Dir, "lib", "qemu", dir), 0o755))
	}
	for file, text := range map[string]string{
		filepath.Join("lib", "qemu", folder, "master-key.aes"): "key",
		filepath.Join("run", "qemu", name+".xml.new"):          "<domstatus sta",
		filepath.Join("etc", "qemu", name+".xml.new"):          "",
		filepath.Join("run", "qemu", name+".pid"):              strconv.Itoa(os.Getpid()),
	} {
		must(t, os.WriteFile(filepath.Join(i.Dir, file), []byte(text), 0o600))
	}
}

func difference(want, have []string) error {
	if slices.Equal(want, have) {
		return nil
	}
	return fmt.Errorf("there was to be %s and is %s", want, have)
}

// remains lists what is there of a domain beside its definition and log.
func remains(t *testing.T, i *libvirtd.Instance, name string) []string {
	t.Helper()
	var found []string
	for _, part := range []string{"run", "lib", "etc"} {
		must(t, filepath.WalkDir(filepath.Join(i.Dir, part), func(path string, _ fs.DirEntry, err error) error {
			definition := part == "etc" && strings.HasSuffix(path, ".xml")
			if strings.Contains(path, name[:min(len(name), 20)]) && !definition {
				found = append(found, strings.TrimPrefix(path, i.Dir))
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // libvirtd is at work
			}
			return err
		}))
	}
	return found
}
