//go:build integration

package volumes

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

var firstOfNamespace = regexp.MustCompile(`(?m)^NSpid:\t\d+\t1$`)

const (
	virtiofsdPath = "/usr/lib/qemu/virtiofsd"
	waitTime      = time.Minute
)

// TestShareLauncher is no test but the launcher of those below, which run this
// program again with arguments.
func TestShareLauncher(t *testing.T) {
	args := flag.Args()
	if len(args) == 0 {
		return
	}
	joined := func(group string) error {
		if group != "/the/group" {
			return fmt.Errorf("asked to join %q", group)
		}
		return nil
	}
	if err := RunShare(args[0], args[1:], joined); err != nil {
		fmt.Fprintln(os.Stderr, err)
		t.FailNow()
	}
}

func testServer(t *testing.T, virtiofsd string) ShareServer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts folders: run it as root")
	}
	return ShareServer{Launcher: []string{"/proc/self/exe", "-test.run=^TestShareLauncher$", "--", virtiofsd}}
}

func newShare(t *testing.T) Share {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "-o source=,comma") // as odd as a pod's author can make it
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	return Share{Source: source, Socket: filepath.Join(dir, "volume0"), Group: "/the/group"}
}

// qemu connects a VM that does not run to a share.
func qemu(t *testing.T, socket string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,accel=tcg,memory-backend=ram", "-m", "32", "-object", "memory-backend-memfd,id=ram,size=32M,share=on",
		"-chardev", "socket,id=c,path="+socket, "-device", "vhost-user-fs-pci,chardev=c,tag=t")
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU, from the package qemu-system-x86: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// servers are the processes that serve a share: one that waits, and the confined one.
func servers(t *testing.T, share Share) []string {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(entries, func(path string) bool {
		line, err := os.ReadFile(path)
		return err != nil || !strings.HasPrefix(string(line), virtiofsdPath) || !strings.Contains(string(line), mountpoint(share))
	})
}

func waitServers(t *testing.T, share Share, want int) []string {
	t.Helper()
	for deadline := time.Now().Add(waitTime); ; time.Sleep(10 * time.Millisecond) {
		found := servers(t, share)
		if len(found) == want {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes serve the folder, want %d", len(found), want)
		}
	}
}

// confined returns the process of a server that is the first of its own namespace.
func confined(t *testing.T, share Share) string {
	t.Helper()
	for _, path := range waitServers(t, share, 2) {
		process := filepath.Dir(path)
		if status, err := os.ReadFile(filepath.Join(process, "status")); err == nil && firstOfNamespace.Match(status) {
			return process
		}
	}
	t.Fatal("no process of the server has a namespace of its own")
	return ""
}

func TestServersAreConfinedAndEndWithQEMU(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("read-only %t", readOnly), func(t *testing.T) {
			share := newShare(t)
			share.ReadOnly = readOnly
			serving, err := testServer(t, virtiofsdPath).Serve(t.Context(), share)
			if err != nil {
				t.Fatal(err)
			}
			machine := qemu(t, share.Socket)
			process := confined(t, share)
			if err := errors.Join(serving.Problem(), serving.Close()); err != nil {
				t.Error(err)
			}
			checkConfined(t, process, readOnly)
			if err := machine.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			waitServers(t, share, 0)
		})
	}
}

func checkConfined(t *testing.T, process string, readOnly bool) {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if ns, err := os.Readlink(filepath.Join(process, "ns", "net")); err != nil || ns == own {
		t.Errorf("the server is in the network namespace %s, %v", ns, err)
	}
	waitFor(t, filepath.Join(process, "status"), "Seccomp:\t2")
	status, err := os.ReadFile(filepath.Join(process, "status"))
	if err != nil {
		t.Fatal(err)
	}
	const mknod, sysAdmin = 1 << 27, 1 << 21
	var capabilities uint64
	_, line, _ := strings.Cut(string(status), "CapEff:\t")
	if _, err := fmt.Sscanf(line, "%x", &capabilities); err != nil {
		t.Fatal(err)
	}
	if capabilities&(mknod|sysAdmin) != 0 {
		t.Errorf("the server may make device nodes or mount: capabilities %x", capabilities)
	}
	mounts, err := os.ReadFile(filepath.Join(process, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(string(mounts)), "\n"); len(lines) != 1 {
		t.Errorf("the server sees more than its folder:\n%s", mounts)
	}
	const options = 5
	if got := strings.HasPrefix(strings.Fields(string(mounts))[options], "ro,"); got != readOnly {
		t.Errorf("read-only is %t, want %t: %s", got, readOnly, mounts)
	}
}

func waitFor(t *testing.T, file, text string) {
	t.Helper()
	for deadline := time.Now().Add(waitTime); ; time.Sleep(10 * time.Millisecond) {
		content, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(content), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not say %q: %v\n%s", file, text, err, content)
		}
	}
}

func TestServeFailures(t *testing.T) {
	missing := newShare(t)
	missing.Source += "/none"
	if _, err := testServer(t, virtiofsdPath).Serve(t.Context(), missing); !errdefs.IsNotFound(err) {
		t.Errorf("a missing folder: %v", err)
	}
	if _, err := testServer(t, "/nonexistent/virtiofsd").Serve(t.Context(), newShare(t)); err == nil || !strings.Contains(err.Error(), "--virtiofsd") {
		t.Errorf("without virtiofsd: %v", err)
	}
	group := newShare(t)
	group.Group = "/another"
	if _, err := testServer(t, virtiofsdPath).Serve(t.Context(), group); err == nil || !strings.Contains(err.Error(), `asked to join "/another"`) {
		t.Errorf("a control group that cannot be joined: %v", err)
	}
	waitServers(t, group, 0)
}
