//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/bootsector"
)

// virtletImages maps the image names of Virtlet's examples, which is all that has to
// be done for them: to the tiny guest; and where it matters only that a guest is booted,
// to one of 512 bytes.
const virtletImages = `translations:
- name: cirros
  url: http://127.0.0.1/tiny.qcow2
- name: fedora
  url: http://127.0.0.1/sector.raw
- regexp: ^download\.cirros-cloud\.net/
  url: http://127.0.0.1/tiny.qcow2
- regexp: ^cloud-images\.ubuntu\.com/
  url: http://127.0.0.1/tiny.qcow2
- regexp: ^cdimage\.debian\.org/
  url: http://127.0.0.1/tiny.qcow2
`

// examples are Virtlet's, in testdata/virtlet. They are for the namespace default.
type examples struct {
	space
	dir string // the manifests, with the names of this machine's things
}

// example is one of them: its file, its pod or workload, and what a script in the guest
// prints. One without a script boots a guest that runs none.
type example struct {
	file, pod    string
	script, says string
}

// chain is examples that have names in common, and so follow one another.
type chain struct {
	name string
	of   []example
}

// chains are the examples, the longest first, but for those with Ceph's volumes.
func chains() []chain {
	const (
		keys  = "grep -c me@localhost /root/.ssh/authorized_keys"
		isBig = keys + "; df -m / | awk 'NR == 2 { print ($2 > 3700) }'"
		setUp = "grep -c ^processor /proc/cpuinfo; tail -n 1 /var/log/cloud-init-output.log"
	)
	return []chain{
		{"block volumes", []example{
			{"cirros-vm-persistent-rootfs-local.yaml", "cirros-vm-pl", "echo kept >/root/first && sync && cat /root/first", "kept"},
			{"cirros-vm-persistent-rootfs-local.yaml", "cirros-vm-pl", "cat /root/first", "kept"},
			{"ubuntu-vm-local-block-pv.yaml", "ubuntu-vm-local-block-pv", "awk '$2 == \"/mnt\" { print $3 }' /proc/mounts", "ext4"},
		}},
		{"k8s", []example{{"k8s.yaml", "k8s-0", setUp, "2\nMaster setup complete."}}},
		{"CPU setting", []example{{"ubuntu-vm-with-libvirt-cpusetting.yaml", "ubuntu-vm-with-nested-virtualization", "grep -c Westmere /proc/cpuinfo", "1"}}},
		{"cirros-vm", []example{{"cirros-vm.yaml", "cirros-vm", keys + "; df -m / | awk 'NR == 2 { print ($2 > 900) }'; grep -c ^processor /proc/cpuinfo; " +
			"awk '$1 == \"MemTotal:\" { print ($2 > 110000 && $2 < 163840) }' /proc/meminfo", "1\n1\n1\n1"}}},
		{"annotations", []example{{"cirros-vm-with-additional-annotations.yaml", "cirros-vm-with-additional-annotations", "grep 'Hi there' /var/log/cloud-init-output.log", "Hi there"}}},
		{"volume mount", []example{{"cirros-vm-volume-mount.yaml", "cirros-vm-volume-mount", "awk '$2 == \"/somevol\" { print $3 }' /proc/mounts", "ext4"}}},
		{"deployment", []example{{"cirros-vm-deployment.yaml", "deployment/cirros-deployment", keys, "1"}}},
		{"debian", []example{{"debian-vm.yaml", "debian-vm", isBig + "; test -s /run/tiny/udhcpc.eth0.pid && echo DHCP", "1\n1\nDHCP"}}},
		{"fedora", []example{{file: "fedora-vm.yaml", pod: "fedora-vm"}, {file: "fedora-vm-with-testuser.yaml", pod: "fedora-vm-with-testuser"}}},
		{"ubuntu", []example{{"ubuntu-vm.yaml", "ubuntu-vm", isBig, "1\n1"}}},
		{"test user", []example{{"ubuntu-vm-with-testuser.yaml", "ubuntu-vm-with-test-user", keys, "1"}}},
		{"multi CNI", []example{{"ubuntu-multi-cni.yaml", "ubuntu-multi-cni", "ip -o link | grep -c eth", "1"}}}, // the node's network is one
		{"volume", []example{{"ubuntu-vm-with-volume.yaml", "ubuntu-vm-with-volume", "df -m /var/lib/docker | awk 'NR == 2 { print ($2 > 1700) }'", "1"}}},
		{"hostPath", []example{{"ubuntu-vm-hostpath-pv.yaml", "ubuntu-vm-hostpath-dir-pv", "echo the guest >/home/ubuntu/hostpath/back; cat /home/ubuntu/hostpath/from", "the node"}}},
		{"NFS", []example{{"ubuntu-vm-nfs-pv.yaml", "ubuntu-vm-nfs-dir-pv", "echo the guest >/home/ubuntu/nfspath/back; cat /home/ubuntu/nfspath/from", "the node"}}},
	}
}

// TestVirtletExamples applies the manifests that Virtlet publishes as examples, without
// their comments, and with what these tell people to fill in: the names of a node and of
// its devices, a server's address. Keys and passwords are others, and so is the script of
// k8s.yaml, which fetches packages from the Internet. Image names are mapped.
func TestVirtletExamples(t *testing.T) {
	t.Parallel()
	must(t, shared.Node().TranslateImages("virtlet", []byte(virtletImages)))
	must(t, bootsector.WriteDisk(deadline(t), filepath.Join(shared.Node().SiteDir(), "sector.raw")))
	things := t.TempDir()
	e := examples{space{"default"}, t.TempDir()}
	e.prepare(t, things)
	t.Run("RBD", func(t *testing.T) {
		t.Parallel()
		e.onCeph(t)
	})
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.name == "CPU setting" {
				e.checkNested(t) // its pod has the same name
			}
			for _, one := range c.of {
				e.apply(t, one.file)
				e.check(t, one)
				if c.name == "NFS" {
					mountedByNFS(t)
				}
				e.remove(t, one.file)
			}
			if c.name == "hostPath" || c.name == "NFS" {
				e.wrote(t, filepath.Join(things, strings.ToLower(c.name), "back"))
			}
		})
	}
}

func (e examples) wrote(t *testing.T, file string) {
	t.Helper()
	if text, err := os.ReadFile(file); err != nil || string(text) != "the guest\n" {
		t.Errorf("the guest wrote %q into the folder, %v", text, err)
	}
}

// prepare makes what the examples' comments ask for, and puts its names into them.
func (e examples) prepare(t *testing.T, things string) {
	t.Helper()
	raw, link := filepath.Join(things, "rawtest"), filepath.Join(things, "rootdev")
	looptest, loopLink := filepath.Join(things, "looptest"), filepath.Join(things, "loopdev") // kubelet wants a device by now
	for _, file := range []string{raw, looptest} {
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Truncate(file, 1000<<20))
	}
	command(t, "mkfs.ext4", "-q", "-F", looptest)
	for file, path := range map[string]string{raw: link, looptest: loopLink} {
		device := command(t, "losetup", "--find", "--show", file)
		t.Cleanup(func() { command(t, "losetup", "--detach", device) })
		must(t, os.Symlink(device, path))
	}
	hostpath, nfs := filepath.Join(things, "hostpath"), filepath.Join(things, "nfs")
	for _, folder := range []string{hostpath, nfs} {
		must(t, os.Mkdir(folder, 0o755))
		must(t, os.WriteFile(filepath.Join(folder, "from"), []byte("the node\n"), 0o644))
	}
	shareByNFS(t, nfs)

	const from = "testdata/virtlet"
	entries, err := os.ReadDir(from)
	must(t, err)
	names := strings.NewReplacer("kube-node-1", shared.Node().Name(), "/dev/rootdev", link, "/var/lib/virtlet/looptest", loopLink,
		"/var/lib/virtlet/hostpath", hostpath, "172.21.0.2", shared.Node().IP().String())
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(from, entry.Name()))
		must(t, err)
		must(t, os.WriteFile(e.file(entry.Name()), []byte(names.Replace(string(text))), 0o600))
	}
}

func (e examples) file(name string) string { return filepath.Join(e.dir, name) }

// apply applies an example, which the test's end removes if nobody has.
func (e examples) apply(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTime)
		defer cancel()
		if t.Failed() {
			seen, _ := shared.Kubectl(ctx, "describe", "-f", e.file(name))
			t.Log(seen)
		}
		if _, err := shared.Kubectl(ctx, "delete", "--ignore-not-found", "--grace-period=5", "-f", e.file(name)); err != nil {
			t.Error(err)
		}
	})
	e.kubectl(t, "apply", "-f", e.file(name))
}

// remove waits until an example's pods have gone.
func (e examples) remove(t *testing.T, name string) {
	t.Helper()
	e.kubectl(t, "delete", "--grace-period=1", "--cascade=foreground", "-f", e.file(name))
}

// check waits until a guest has come up and a script in it prints what it should. Every
// guest goes by its pod's name and has its pod's address and a default route.
func (e examples) check(t *testing.T, one example) {
	t.Helper()
	if one.script == "" {
		eventually(t, "the guest of "+one.pod+" boots", func(ctx context.Context) error {
			log, err := shared.Kubectl(ctx, "--namespace", e.name, "logs", one.pod)
			if err == nil && !strings.Contains(log, bootsector.Ready) {
				err = fmt.Errorf("its console shows %q", log)
			}
			return err
		})
		return
	}
	query := []string{"get", "pod", one.pod, "-o", "jsonpath={.metadata.name} {.status.podIP}"}
	if workload, found := strings.CutPrefix(one.pod, "deployment/"); found {
		query = []string{"get", "pod", "-l", "app=" + strings.TrimSuffix(workload, "-deployment"), "-o", "jsonpath={.items[0].metadata.name} {.items[0].status.podIP}"}
	}
	const facts = "hostname; ip -4 -o addr show dev eth0 | awk '{ print $4 }' | cut -d/ -f1; ip route | grep -c ^default; "
	eventually(t, fmt.Sprintf("guest %s answers %q", one.pod, one.script), func(ctx context.Context) error {
		known, err := shared.Kubectl(ctx, append([]string{"--namespace", e.name}, query...)...)
		if err != nil {
			return err
		}
		out, err := shared.Kubectl(ctx, "--namespace", e.name, "exec", one.pod, "--", "sh", "-c", facts+one.script)
		if want := strings.Replace(known, " ", "\n", 1) + "\n1\n" + one.says + "\n"; err == nil && out != want {
			err = fmt.Errorf("it says %q, want %q", out, want)
		}
		return err
	})
}

// checkNested: what the example asks for takes KVM; without, the pod says so.
func (e examples) checkNested(t *testing.T) {
	t.Helper()
	const pod = "ubuntu-vm-with-nested-virtualization"
	e.apply(t, pod+".yaml")
	eventually(t, "the pod runs, or says why it cannot", func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "--namespace", e.name, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].state.waiting.message}")
		if err == nil && !strings.HasPrefix(out, "true") && !strings.Contains(out, "KVM") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	e.remove(t, pod+".yaml")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
