//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// nfsExport is what the NFS server calls the folder that it shares.
const nfsExport = "/home/ubuntu/nfs/ubuntu-nfs"

// nfsSettings are those of NFS-Ganesha, a server outside of the kernel. %[1]s is the
// folder that it shares, %[2]s the one for its own files.
const nfsSettings = `NFS_CORE_PARAM {
	Protocols = 3;
	mount_path_pseudo = true;
	Clustered = false;
	Enable_NLM = false;
	Enable_RQUOTA = false;
	Plugins_Dir = "/usr/lib/x86_64-linux-gnu/ganesha";
}
NFSv4 {
	Graceless = true;
	RecoveryRoot = "%[2]s";
}
EXPORT {
	Export_Id = 1;
	Path = "%[1]s";
	Pseudo = "` + nfsExport + `";
	Access_Type = RW;
	Squash = No_Root_Squash;
	SecType = sys;
	FSAL { Name = VFS; }
}
`

// covered runs a command that sees the file or folder $1 in place of $2, in a mount
// namespace that is not the machine's.
const covered = `mount --make-private "$(findmnt --noheadings --output TARGET --target "$2" | tail -n 1)" &&
mount --bind "$1" "$2" && shift 2 && exec "$@"`

// shareByNFS has the cluster's node share a folder by NFS, and its kubelet mount such:
// with programs that do without the kernel's NFS, which it may lack.
func shareByNFS(t *testing.T, folder string) {
	t.Helper()
	n := shared.Node()
	dir := filepath.Join(n.Root(), "nfs")
	run, settings, client := filepath.Join(dir, "run"), filepath.Join(dir, "ganesha.conf"), filepath.Join(dir, "mount.nfs")
	must(t, os.MkdirAll(run, 0o755))
	must(t, os.WriteFile(settings, fmt.Appendf(nil, nfsSettings, folder, dir), 0o600))
	// They meet at a socket that has its place in /run.
	for _, daemon := range []struct{ name, port, command string }{
		{"rpcbind", "111", "rpcbind -f"},
		{"ganesha", "2049", "ganesha.nfsd -F -L STDOUT -f " + settings + " -p " + filepath.Join(dir, "pid")},
	} {
		must(t, n.Run(deadline(t), node.Daemon{
			Name:  daemon.name,
			Argv:  append([]string{"unshare", "--mount", "sh", "-c", covered, "sh", run, "/run"}, strings.Fields(daemon.command)...),
			Ready: func(ctx context.Context) error { return listens(ctx, net.JoinHostPort(n.IP().String(), daemon.port)) }, Timeout: testTime,
		}))
		t.Cleanup(func() { must(t, n.Kill(context.Background(), daemon.name)) }) // it has nothing to save
	}
	const compile = `gcc -O1 -Wall -Wextra -Werror -o "$1" testdata/mount.nfs.c $(pkg-config --cflags --libs fuse3 libnfs)`
	command(t, "sh", "-c", compile, "sh", client)
	kubelet := fmt.Sprintf("--mount=/proc/%d/ns/mnt", n.Process(node.Kubelet).PID)
	command(t, "nsenter", kubelet, "sh", "-c", covered, "sh", client, "/sbin/mount.nfs", "true")
	t.Cleanup(func() { command(t, "nsenter", kubelet, "umount", "/sbin/mount.nfs") })
}

func listens(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// mountedByNFS checks that the node has mounted what the server shares.
func mountedByNFS(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if want := " fuse.nfs " + shared.Node().IP().String() + ":" + nfsExport + " "; !strings.Contains(string(mounts), want) {
		t.Errorf("no mount of the node is %q:\n%s", want, mounts)
	}
}

// command runs a program of the machine and returns what it prints.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
