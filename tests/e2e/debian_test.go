//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
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

// debianKind is a stock Debian with the real cloud-init.
var debianKind = kind{name: "debian", handler: "vm"}

const (
	debianMemory = 512 << 20
	// debianTime is for the boot, a minute's work where nothing else is done.
	debianTime = 15 * time.Minute
)

// debianNetwork has all that a guest can be told about its network: both families,
// an MTU that is not the usual one, a default route and another one.
const debianNetwork = `{"cniVersion": "1.0.0", "name": "e2e-dual", "plugins": [{
	"type": "bridge", "bridge": "e2e-dual0", "isGateway": true, "hairpinMode": true, "mtu": 1400,
	"ipam": {
		"type": "host-local", "dataDir": "%s",
		"ranges": [[{"subnet": "172.30.5.0/24"}], [{"subnet": "fd00:e2e::/64"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "198.51.100.0/24", "gw": "172.30.5.250"}, {"dst": "fd00:e2e:1::/48", "gw": "fd00:e2e::250"}]
	}
}]}`

// useNetwork makes pods that the test starts use another network.
func useNetwork(t *testing.T, n *node.Node, conflist string) {
	t.Helper()
	undo, err := n.UseNetwork([]byte(conflist))
	must(t, err)
	t.Cleanup(func() { must(t, undo()) })
}

// removeBridge removes what the CNI plugin keeps for later pods.
func removeBridge(t *testing.T, n *node.Node, name string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+n.Namespace(), "ip", "link", "delete", name).CombinedOutput()
	if err != nil {
		t.Errorf("remove the test's bridge: %v: %s", err, out)
	}
}

const (
	debianKey      = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJw3aB0gYd4ZCDl0rDgT2aVHTKyMdJ6ecGCkZJ5kq4m9 annotation@test"
	debianUserData = `#cloud-config
ssh_authorized_keys:
- ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHm4nJ5kq4m9w3aB0gYd4ZCDl0rDgT2aVHTKyMdJ6ecG user-data@test
write_files:
- path: /etc/from-user-data
  permissions: "0640"
  owner: root:adm
  content: "a: 'b'\n"
runcmd:
- [sh, -c, "cat /etc/settings/mode /etc/settings/key /share/hello >/root/seen; blockdev --getsize64 /dev/xdata >>/root/seen"]
mounts:
- [tmpfs, /srv/scratch, tmpfs, "size=1M"]
`
)

// TestDebian boots Debian's own cloud-init with each data source. What cloud-init
// thinks of the documents counts as much as what comes of them.
func TestDebian(t *testing.T) {
	n := criNode(t)
	image, err := n.ServeGuest("debian.qcow2")
	must(t, err)
	c, k := dial(t, n), debianKind
	k.image = image
	c.pull(t, k)
	useNetwork(t, n, fmt.Sprintf(debianNetwork, filepath.Join(n.Root(), "leases-dual")))
	guests := map[string]*debianGuest{}
	for _, source := range []string{"nocloud", "configdrive"} { // they boot at the same time
		guests[source] = startDebian(t, c, k, source)
	}
	t.Run("guests", func(t *testing.T) { // and are asked at the same time
		for source, guest := range guests {
			t.Run(source, func(t *testing.T) {
				t.Parallel()
				guest.check(t)
			})
		}
	})
	for _, guest := range guests {
		guest.removeAtEnd(t)
	}
	removeBridge(t, n, "e2e-dual0")
	nothingLeft(t, n)
}

type debianGuest struct {
	*pod
	share string // folder of the node
	ips   []string
}

func startDebian(t *testing.T, c client, k kind, source string) *debianGuest {
	t.Helper()
	p := &pod{client: c, config: podConfig(t, c.n, k), container: containerConfig(k), kind: k}
	t.Cleanup(func() { p.removeAtEnd(t) })
	settings := kubeletVolume(t, map[string]string{"mode": "fast\n", "key": "\x00\xffbinary\n"})
	guest := &debianGuest{pod: p, share: folderWith(t, "from the node\n")}
	device, _ := loop(t, dataSize, "")
	p.config.Hostname = "debian-" + source
	p.config.DnsConfig = &runtimeapi.DNSConfig{
		Servers: []string{"172.30.5.53", "fd00:e2e::53"}, Searches: []string{"e2e.svc.cluster.test", "cluster.test"}, Options: []string{"ndots:5", "rotate"},
	}
	p.config.Annotations = map[string]string{
		"vm.ambipod.io/cloud-init-datasource": source,
		"vm.ambipod.io/ssh-keys":              debianKey,
		"vm.ambipod.io/user-data":             debianUserData,
	}
	p.container.Linux.Resources.MemoryLimitInBytes = debianMemory
	p.container.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("it's $HOME")}}
	p.container.Command = []string{"sh", "-c", `echo "$GREETING" >/root/command`}
	p.container.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/etc/settings", HostPath: settings, Readonly: true},
		{ContainerPath: "/share", HostPath: guest.share},
	}
	p.container.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/xdata", HostPath: device, Permissions: "mrw"}}
	must(t, p.tryRun(t))
	answer, err := p.PodSandboxStatus(deadline(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandboxID})
	must(t, err)
	guest.ips = []string{answer.GetStatus().GetNetwork().GetIp()}
	for _, more := range answer.GetStatus().GetNetwork().GetAdditionalIps() {
		guest.ips = append(guest.ips, more.GetIp())
	}
	return guest
}

// kubeletVolume is a folder as kubelet makes it of a ConfigMap.
func kubeletVolume(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	current := filepath.Join(dir, "..2026")
	must(t, os.Mkdir(current, 0o755))
	must(t, os.Symlink("..2026", filepath.Join(dir, "..data")))
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(current, name), []byte(content), 0o600))
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	return dir
}

func (g *debianGuest) check(t *testing.T) {
	// Not until there is a log-in: systemd gives the console up after 90 s of a slow boot.
	ctx, cancel := context.WithTimeout(t.Context(), debianTime)
	defer cancel()
	must(t, node.Until(ctx, "the guest's agent answers", func(ctx context.Context) error {
		_, err := g.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: g.id, Cmd: []string{"true"}})
		return err
	}))
	if status := g.say(t, "cloud-init status --wait --long"); !strings.Contains(status, "status: done") {
		t.Errorf("cloud-init says: %s", status)
	}
	t.Run("no complaint", g.checkComplaints)
	t.Run("schema", g.checkSchema)
	t.Run("files", g.checkFiles)
	t.Run("network", g.checkNetwork)
}

// say runs a script in the guest and returns what it prints.
func (g *debianGuest) say(t *testing.T, script string) string {
	t.Helper()
	answer := g.sync(t, script)
	return string(answer.GetStdout()) + string(answer.GetStderr())
}

// expect compares what scripts in the guest print.
func (g *debianGuest) expect(t *testing.T, wants map[string]string) {
	t.Helper()
	for script, want := range wants {
		if got := strings.TrimRight(g.say(t, script), "\n"); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

func (g *debianGuest) checkComplaints(t *testing.T) {
	var result struct {
		V1 struct {
			Datasource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	must(t, json.Unmarshal(g.sync(t, "cat /run/cloud-init/result.json").GetStdout(), &result))
	if len(result.V1.Errors) > 0 {
		t.Errorf("errors of cloud-init: %q", result.V1.Errors)
	}
	if want := map[string]string{"debian-nocloud": "DataSourceNoCloud", "debian-configdrive": "DataSourceConfigDrive"}[g.config.GetHostname()]; !strings.HasPrefix(result.V1.Datasource, want) {
		t.Errorf("the data source is %q, want %s", result.V1.Datasource, want)
	}
	if warnings := g.say(t, "grep -E 'WARNING|ERROR|CRITICAL|Traceback' /var/log/cloud-init.log /var/log/cloud-init-output.log"); warnings != "" {
		t.Errorf("warnings of cloud-init:\n%s", warnings)
	}
	if failed := g.say(t, "systemctl --failed --plain --no-legend"); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
}

func (g *debianGuest) checkSchema(t *testing.T) {
	answer := g.sync(t, "cloud-init schema --system --annotate")
	if text := string(answer.GetStdout()); answer.GetExitCode() != 0 || !strings.Contains(text, "Valid cloud-config") || strings.Contains(text, "Invalid") {
		t.Errorf("cloud-init schema: exit code %d: %s%s", answer.GetExitCode(), text, answer.GetStderr())
	}
}

func (g *debianGuest) checkFiles(t *testing.T) {
	g.expect(t, map[string]string{
		"hostname":                                   g.config.GetHostname(),
		"cat /etc/from-user-data":                    "a: 'b'",
		"stat -c '%a %U:%G' /etc/from-user-data":     "640 root:adm",
		"stat -c %a /etc/settings/key":               "600",
		"cat /etc/settings/mode":                     "fast",
		"od -An -c /etc/settings/key | tr -d ' \\n'": `\0377binary\n`,
		"cat /share/hello":                           "from the node",
		"findmnt -no FSTYPE /share":                  "virtiofs",
		"readlink /dev/xdata | sed 's/sd./sdX/'":     "/dev/sdX",
		"findmnt -no FSTYPE,OPTIONS /srv/scratch | tr -s ' ' | cut -d, -f1": "tmpfs rw",
		". /etc/cloud/environment; echo \"$GREETING\"":                      "it's $HOME",
		". /etc/cloud/environment; echo \"$RES_OPTIONS\"":                   "ndots:5 rotate",
		"echo \"$GREETING, $RES_OPTIONS\"":                                  "it's $HOME, ndots:5 rotate",
		"cat /root/command":                                                 "it's $HOME",
		"cut -d' ' -f3 ~debian/.ssh/authorized_keys | sort":                 "annotation@test\nuser-data@test",
		"cloud-init query instance_id":                                      "pod-" + g.config.GetMetadata().GetUid(),
	})
	must(t, os.WriteFile(filepath.Join(g.share, "later"), []byte("news\n"), 0o644))
	g.expect(t, map[string]string{"cat /share/later": "news", "echo back >/share/answer": ""})
	if got, err := os.ReadFile(filepath.Join(g.share, "answer")); err != nil || string(got) != "back\n" {
		t.Errorf("the guest wrote %q, %v", got, err)
	}
}

func (g *debianGuest) checkNetwork(t *testing.T) {
	g.expect(t, map[string]string{
		"ip -br -4 addr show dev eth0 scope global | tr -s ' ' | cut -d' ' -f3": g.ips[0] + "/24",
		"ip -br -6 addr show dev eth0 scope global | tr -s ' ' | cut -d' ' -f3": g.ips[1] + "/64",
		"cat /sys/class/net/eth0/mtu":                                           "1400",
		"ip -4 route show default | cut -d' ' -f1-5":                            "default via 172.30.5.1 dev eth0",
		"ip -6 route show default | cut -d' ' -f1-5":                            "default via fd00:e2e::1 dev eth0",
		"ip -4 route show 198.51.100.0/24 | cut -d' ' -f1-5":                    "198.51.100.0/24 via 172.30.5.250 dev eth0",
		"ip -6 route show fd00:e2e:1::/48 | cut -d' ' -f1-5":                    "fd00:e2e:1::/48 via fd00:e2e::250 dev eth0",
		"resolvectl dns eth0 | cut -d: -f2-":                                    " 172.30.5.53 fd00:e2e::53",
		"resolvectl domain eth0 | cut -d: -f2-":                                 " e2e.svc.cluster.test cluster.test",
		"ping -q -c 1 -W 10 172.30.5.1 >/dev/null && echo yes":                  "yes",
		"ping -q -c 1 -W 10 fd00:e2e::1 >/dev/null && echo yes":                 "yes",
	})
}
