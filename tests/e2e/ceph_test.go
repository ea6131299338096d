//go:build e2e && ceph

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// cephMonitor is in the node's own network, as QEMU is.
const cephMonitor = "127.0.0.1:6789"

// cephSettings are those of one monitor and one storage daemon, which keeps all in
// memory. %[1]s is the folder of all their files.
const cephSettings = `[global]
fsid = 7c5f2a5e-4f0e-4a0b-9a57-6a1c7d8f3b21
mon_initial_members = a
mon_host = v1:` + cephMonitor + `
public_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
osd_objectstore = memstore
memstore_device_bytes = 268435456
mon_data = %[1]s/mon
osd_data = %[1]s/osd
run_dir = %[1]s
admin_socket =
log_file = %[1]s/$name.log
crash_dir = %[1]s
keyring = %[1]s/keyring

[osd]
keyring = %[1]s/osd/keyring
`

// cephCluster is a private Ceph cluster on a node.
type cephCluster struct {
	n    *node.Node
	dir  string
	conf string
}

// startCeph starts a cluster, which ends with the node.
func startCeph(t *testing.T, n *node.Node) cephCluster {
	t.Helper()
	dir := filepath.Join(n.Root(), "ceph")
	c := cephCluster{n, dir, filepath.Join(dir, "ceph.conf")}
	must(t, os.MkdirAll(filepath.Join(dir, "osd"), 0o755))
	must(t, os.WriteFile(c.conf, fmt.Appendf(nil, cephSettings, dir), 0o644))
	keyring, monmap := filepath.Join(dir, "keyring"), filepath.Join(dir, "monmap")
	c.run(t, "ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
	c.run(t, "ceph-authtool", keyring, "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
	c.run(t, "monmaptool", "--create", "--fsid", "7c5f2a5e-4f0e-4a0b-9a57-6a1c7d8f3b21", "--addv", "a", "[v1:"+cephMonitor+"]", monmap)
	c.run(t, "ceph-mon", "-c", c.conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
	must(t, n.Run(deadline(t), node.Daemon{
		Name: "ceph-mon", Argv: []string{"ceph-mon", "-c", c.conf, "-i", "a", "-f"}, Timeout: testTime,
		Ready: func(ctx context.Context) error {
			return c.command(ctx, "ceph", "-c", c.conf, "--connect-timeout", "5", "mon", "stat").Run()
		},
	}))
	osd := strings.TrimSpace(c.run(t, "ceph", "-c", c.conf, "osd", "create"))
	c.run(t, "ceph", "-c", c.conf, "auth", "get-or-create", "osd."+osd, "mon", "allow profile osd", "osd", "allow *", "-o", filepath.Join(dir, "osd", "keyring"))
	c.run(t, "ceph-osd", "-c", c.conf, "-i", osd, "--mkfs")
	must(t, n.Run(deadline(t), node.Daemon{
		Name: "ceph-osd", Argv: []string{"ceph-osd", "-c", c.conf, "-i", osd, "-f"}, Timeout: testTime,
		Ready: func(ctx context.Context) error {
			out, err := c.command(ctx, "ceph", "-c", c.conf, "osd", "stat").Output()
			if err == nil && !strings.Contains(string(out), "1 up") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		},
	}))
	c.run(t, "ceph", "-c", c.conf, "osd", "pool", "create", "pods", "8")
	return c
}

func (c cephCluster) command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + c.n.Namespace()}, argv...)...)
}

func (c cephCluster) run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := c.command(deadline(t), argv...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run %s (from Debian's packages ceph-mon, ceph-osd and ceph-common): %v: %s", strings.Join(argv, " "), err, complaint.String())
	}
	return string(out)
}

// image makes an RBD image that is a file system with one file.
func (c cephCluster) image(t *testing.T, name, content string) {
	t.Helper()
	top, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(filepath.Join(top, "file"), []byte(content), 0o644))
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 16<<20))
	if out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-t", "ext4", "-d", top, disk).CombinedOutput(); err != nil {
		t.Fatalf("make file system: %v: %s", err, out)
	}
	c.run(t, "rbd", "-c", c.conf, "import", "--no-progress", "--image-feature", "layering", disk, "pods/"+name)
}

// TestFlexvolumesOnCeph: a VM has two RBD images as Virtlet's manifests describe them,
// reads and writes them, and libvirt keeps no key.
func TestFlexvolumesOnCeph(t *testing.T) {
	n := criNode(t)
	cluster := startCeph(t, n)
	cluster.image(t, "one", "of the first image")
	cluster.image(t, "two", "of the second image")
	key := strings.TrimSpace(cluster.run(t, "ceph", "-c", cluster.conf, "auth", "get-or-create-key", "client.libvirt", "mon", "profile rbd", "osd", "profile rbd"))
	c := dial(t, n)
	c.pull(t, vmKind)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{"vm.ambipod.io/disks": "[{volume: two, bus: virtio}]"}
	for _, name := range []string{"one", "two"} {
		options := fmt.Sprintf(`{"type":"ceph","monitor":%q,"user":"libvirt","secret":%q,"pool":"pods","volume":%q,"part":"0"}`, cephMonitor, key, name)
		p.container.Mounts = append(p.container.Mounts, &runtimeapi.Mount{
			ContainerPath: "/" + name, HostPath: volumeAt(t, "virtlet~flexvolume_driver", name, options), Readonly: name == "two",
		})
	}
	must(t, p.tryRun(t))
	p.says(t, "cat /one/file /two/file; touch /two/new 2>/dev/null || echo read-only; echo written in the guest >/one/new && sync",
		"of the first imageof the second imageread-only\n")
	_, id, _ := strings.Cut(p.id, ".")
	disks := virshSays(t, n, "domblklist", "ambipod-"+id[:12]+"-"+p.container.GetMetadata().GetName())
	for _, name := range []string{"pods/one", "pods/two"} {
		if !strings.Contains(disks, name) {
			t.Errorf("libvirt's list of the VM's disks lacks %s:\n%s", name, disks)
		}
	}
	if secrets := strings.TrimSpace(virshSays(t, n, "--quiet", "secret-list")); secrets != "" {
		t.Errorf("libvirt keeps the keys %s", secrets)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
	exported := filepath.Join(t.TempDir(), "one")
	cluster.run(t, "rbd", "-c", cluster.conf, "export", "--no-progress", "pods/one", exported)
	out, err := exec.CommandContext(t.Context(), "debugfs", "-R", "cat /new", exported).Output()
	if err != nil || string(out) != "written in the guest\n" {
		t.Errorf("the image has %q (%v), want what the guest wrote", out, err)
	}
}

func virshSays(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "virsh", append([]string{"--connect", n.LibvirtURI()}, args...)...).Output()
	must(t, err)
	return string(out)
}
