package criserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cloudinit"
)

// kubeletVolume lays a volume out as kubelet's atomic writer does.
func kubeletVolume(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	const version = "..2026_11_21"
	for name, content := range files {
		path := filepath.Join(dir, version, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		top, _, _ := strings.Cut(name, "/")
		if err := os.Symlink(filepath.Join(kubeletData, top), filepath.Join(dir, top)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(version, filepath.Join(dir, kubeletData)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestGuestFiles(t *testing.T) {
	volume := kubeletVolume(t, map[string]string{"token": "secret", "sub/ca.crt": "certificate"})
	hosts := filepath.Join(t.TempDir(), "etc-hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := guestFiles([]*runtimeapi.Mount{
		{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: volume, Readonly: true},
		{ContainerPath: "/etc/hosts", HostPath: hosts},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []cloudinit.WriteFile{
		{Path: "/var/run/secrets/kubernetes.io/serviceaccount/sub/ca.crt", Content: []byte("certificate"), Mode: 0o600},
		{Path: "/var/run/secrets/kubernetes.io/serviceaccount/token", Content: []byte("secret"), Mode: 0o600},
		{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n"), Mode: 0o644},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestGuestFilesWaitForNoPipe: in a folder that a guest could write to, it can leave what
// looks like a volume of kubelet's.
func TestGuestFilesWaitForNoPipe(t *testing.T) {
	volume := kubeletVolume(t, map[string]string{"token": "secret"})
	pipe := filepath.Join(volume, kubeletData, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mount := range []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: volume},
		{ContainerPath: "/file", HostPath: pipe},
	} {
		read := make(chan error, 1)
		go func() {
			_, err := guestFiles([]*runtimeapi.Mount{mount})
			read <- err
		}()
		select {
		case err := <-read:
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), mount.GetContainerPath()) {
				t.Errorf("a pipe is read: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("volume at %s: the pipe is waited for", mount.GetContainerPath())
			writer, err := os.OpenFile(pipe, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			writer.Close() // which lets the reader go
			<-read
		}
	}
}

func TestGuestFilesRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(outside, []byte("root:x"), 0o600); err != nil {
		t.Fatal(err)
	}
	escaping := kubeletVolume(t, map[string]string{"key": "value"})
	if err := os.Symlink(outside, filepath.Join(escaping, kubeletData, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := guestFiles([]*runtimeapi.Mount{{ContainerPath: "/c", HostPath: escaping}}); err == nil {
		t.Error("a link out of the volume was followed")
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := guestFiles([]*runtimeapi.Mount{{ContainerPath: "/large", HostPath: large}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("more than fits: %v", err)
	}
}
