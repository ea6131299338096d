package volumes

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// envPrepare makes this program's TestPrepareInChild prepare the root disk in it.
const envPrepare = "AMBIPOD_TEST_PREPARE"

func TestPrepareInChild(t *testing.T) {
	text := os.Getenv(envPrepare)
	if text == "" {
		return // nobody asks
	}
	var r PersistentRoot
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	_, err := PreparePersistentRoot(t.Context(), r)
	t.Errorf("the process lives on: %v", err)
}

// prepareAndDie has another process prepare a root disk, with a qemu-img that does
// what the script says and can end it, its parent, at that moment.
func prepareAndDie(t *testing.T, r PersistentRoot, script string) {
	t.Helper()
	real, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatalf("install the package qemu-utils: %v", err)
	}
	dir := t.TempDir()
	text := "#!/bin/sh\nqemu_img() { " + real + " \"$@\"; }\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "qemu-img"), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	order, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPrepareInChild$")
	cmd.Env = append(os.Environ(), envPrepare+"="+string(order), "DEVICE="+r.Device, "PATH="+dir+":"+os.Getenv("PATH"))
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if status, ok := errorStatus(err, &exit); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended with %v: %s", err, output)
	}
}

func errorStatus(err error, exit **exec.ExitError) (syscall.WaitStatus, bool) {
	if !errors.As(err, exit) {
		return 0, false
	}
	status, ok := (*exit).Sys().(syscall.WaitStatus)
	return status, ok
}

// TestKilledWhileCopying: whenever vmruntime is killed, the next attempt finds that
// the copy is not complete, makes it anew, and from then on leaves it alone.
func TestKilledWhileCopying(t *testing.T) {
	for name, script := range map[string]string{
		"before the copy":         `kill -9 $PPID`,
		"in the middle":           `printf "half of it ...." | dd of="$DEVICE" bs=1M seek=1 conv=notrunc 2>/dev/null; kill -9 $PPID`,
		"when all but the header": `qemu_img "$@"; kill -9 $PPID`,
	} {
		for _, earlier := range []string{"", "another image"} {
			t.Run(name+" "+earlier, func(t *testing.T) {
				r := newPersistent(t, "qcow2")
				if earlier != "" { // a disk that is being replaced is no disk any more
					r.ImageID = earlier
					prepared(t, r)
					r.ImageID, r.Replace = "one", true
				}
				prepareAndDie(t, r, script)
				r.Replace = false
				if complete := headerOf(t, r).Complete; complete {
					t.Fatal("the header says that the copy is complete")
				}
				prepared(t, r)
				diskBegins(t, r, "from the image")
				if !headerOf(t, r).Complete {
					t.Error("the header does not say that the copy is complete")
				}
				change(t, r, RootOffset, "by the guest..")
				prepared(t, r)
				diskBegins(t, r, "by the guest..")
			})
		}
	}
}

func headerOf(t *testing.T, r PersistentRoot) header {
	t.Helper()
	content, err := os.ReadFile(r.Device)
	if err != nil {
		t.Fatal(err)
	}
	body, found := strings.CutPrefix(strings.TrimRight(string(content[:headerSize]), "\x00"), headerMagic)
	var h header
	if err := json.Unmarshal([]byte(body), &h); err != nil || !found {
		t.Fatalf("header %q: %v", body, err)
	}
	return h
}

// A sector is what a disk writes at once: a power cut leaves the old header or the new.
func TestHeaderFitsIntoASector(t *testing.T) {
	r := newPersistent(t, "raw")
	r.ImageID = strings.Repeat("f", 64)
	prepared(t, r)
	content, err := os.ReadFile(r.Device)
	if err != nil {
		t.Fatal(err)
	}
	if used := strings.TrimRight(string(content[:RootOffset]), "\x00"); len(used) > sectorSize {
		t.Errorf("the header has %d bytes", len(used))
	}
}

// TestPersistentRootOnALargerDevice: the guest's disk is all that there is.
func TestPersistentRootOnALargerDevice(t *testing.T) {
	r := newPersistent(t, "qcow2")
	prepared(t, r)
	change(t, r, RootOffset, "by the guest..")
	const larger = 20 * mebibyte
	if err := os.Truncate(r.Device, larger); err != nil {
		t.Fatal(err)
	}
	if size, err := PreparePersistentRoot(t.Context(), r); err != nil || size != larger-RootOffset {
		t.Errorf("the guest's disk has %d bytes, %v", size, err)
	}
}
