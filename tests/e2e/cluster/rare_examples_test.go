//go:build e2e

package cluster

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/e2e/fixture"
)

// seedDisk shows a guest the disk that its cloud-init reads.
const seedDisk = "mkdir -p /run/seed; grep -q ' /run/seed ' /proc/mounts || mount -r -t iso9660 /dev/sr0 /run/seed; "

// rareExamples show what few VMs need. The usual ones are seven, so the first of these boots
// with their last: then two of one file are a batch, and the router is with a VM that is none.
func rareExamples() []shown {
	const addresses = "ip -4 -o addr show dev eth0 | grep -c inet"
	return []shown{
		{
			file: "commands.yaml", pod: "busy",
			script: "cat /root/by-script /run/by-hook",
			want:   "set up once\nstarted\n",
			see:    space.takesLeave,
		},
		{
			file: "user-data.yaml", pod: "exception",
			script: "cat /etc/own; test -e /etc/fleet || echo alone; cut -d' ' -f3 /root/.ssh/authorized_keys",
			want:   "one of a kind\nalone\nyou@example\n",
		},
		{
			file: "folders-9p.yaml", pod: "with-9p",
			script: `awk '$2 == "/zones" {print $3}' /proc/mounts; test -s /zones/UTC && echo zones; touch /zones/new 2>/dev/null || echo read-only`,
			want:   "9p\nzones\nread-only\n",
		},
		{
			file: "guest-network.yaml", pod: "asks-by-dhcp",
			script: seedDisk + "test -s /run/seed/meta-data && ! test -e /run/seed/network-config && echo told nothing; test -s /run/tiny/udhcpc.eth0.pid && echo DHCP; " + addresses,
			want:   "told nothing\nDHCP\n1\n",
		},
		{
			// The tiny guest does not know version 1 and asks by DHCP.
			file: "guest-network.yaml", pod: "old-cloud-init",
			script: seedDisk + "grep version: /run/seed/network-config; " + addresses,
			want:   "version: 1\n1\n",
		},
		{
			file: "cpu.yaml", pod: "same-everywhere",
			script: "grep -o Westmere /proc/cpuinfo; grep -qw sse4_2 /proc/cpuinfo && echo SSE; grep -qw aes /proc/cpuinfo || echo no AES",
			want:   "Westmere\nSSE\nno AES\n",
		},
		{
			file: "router.yaml", pod: "router",
			script: "ip -4 -o addr show dev lo | grep -o 198.51.100.7",
			want:   "198.51.100.7\n",
			see:    space.answersFor,
		},
		{
			file: "bandwidth.yaml", pod: "slow-line",
			script: "truncate -s 320M /var/www/large && echo made", // of holes
			want:   "made\n",
			see:    space.sendsSlowly,
		},
		{
			file: "virtlet.yaml", pod: "from-virtlet",
			script: `awk '$2 == "/disk" || $2 == "/folder" {print $2, $3}' /proc/mounts | sort; stat -c %u /folder; grep -c you@example /root/.ssh/authorized_keys`,
			want:   "/disk ext4\n/folder virtiofs\n0\n1\n",
		},
		{file: "images.yaml", pod: "from-a-web-server", script: "hostname", want: "from-a-web-server\n"},
		{file: "images.yaml", pod: "from-a-registry", script: "hostname", want: "from-a-registry\n"},
		{file: "private-image.yaml", pod: "from-a-private-server", script: "hostname", want: "from-a-private-server\n"},
		// The stand-in's disk has nothing for UEFI, and the firmware says so.
		{file: "windows.yaml", pod: "windows", see: func(s space, t *testing.T, pod string) { s.logs(t, pod, "BdsDxe: ") }},
	}
}

// exampleImages stand in for images of examples that a private cluster lacks; %s is a server
// that wants a password.
const exampleImages = `translations:
- name: tiny-full
  url: http://127.0.0.1/tiny-full.qcow2
- name: windows
  url: http://127.0.0.1/tiny.qcow2
- regexp: ^cloud\.debian\.org/images/
  url: http://127.0.0.1/tiny.qcow2
- regexp: ^oci/registry\.example\.com/containerdisks/
  url: oci://127.0.0.1:5000/containerdisks/tiny:latest
- regexp: ^disks\.example\.com/
  url: http://%s/tiny.qcow2
`

// nameImages lets the image names of examples mean images of the private node.
func nameImages(t *testing.T) {
	t.Helper()
	n := shared.Node()
	private := fixture.ServeInNode(t, n, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "open sesame" {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.ServeFile(w, r, filepath.Join(n.SiteDir(), "tiny.qcow2"))
	})
	must(t, n.TranslateImages("examples", fmt.Appendf(nil, exampleImages, private)))
	_, err := n.ServeGuest("tiny-full.qcow2")
	must(t, err)
	crane, err := n.Tool("crane")
	must(t, err)
	cmd := exec.CommandContext(deadline(t), crane, "append", "--insecure", "--new_layer", containerDisk(t), "--new_tag", n.RegistryAddress()+"/containerdisks/tiny:latest")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("push a container disk: %v: %s", err, out)
	}
}

// containerDisk is the layer of a KubeVirt container disk with the tiny guest.
func containerDisk(t *testing.T) string {
	t.Helper()
	disk, err := os.ReadFile(filepath.Join(shared.Node().SiteDir(), "tiny.qcow2"))
	must(t, err)
	layer := filepath.Join(t.TempDir(), "layer.tar")
	f, err := os.Create(layer)
	must(t, err)
	w := tar.NewWriter(f)
	must(t, w.WriteHeader(&tar.Header{Name: "disk/tiny.qcow2", Mode: 0o444, Size: int64(len(disk))}))
	_, err = w.Write(disk)
	must(t, errors.Join(err, w.Close(), f.Close()))
	return layer
}

// logs waits until a VM's console has shown a text.
func (s space) logs(t *testing.T, pod, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the console of %s shows %q", pod, text), func(ctx context.Context) error {
		log, err := shared.Kubectl(ctx, "--namespace", s.name, "logs", pod)
		if err == nil && !strings.Contains(log, text) {
			err = fmt.Errorf("it shows %q: %w", log, errdefs.ErrUnavailable)
		}
		return err
	})
}

// takesLeave looks for what the pod's command has said, deletes it, and looks for what its
// hook says before the guest shuts down.
func (s space) takesLeave(t *testing.T, pod string) {
	s.logs(t, pod, "the command works in /usr/bin")
	cmd, err := shared.Command(deadline(t), "--namespace", s.name, "logs", "--follow", pod)
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	console := bufio.NewReader(out)
	_, err = console.ReadString('\n') // it follows
	must(t, err)
	s.kubectl(t, "delete", "pod", pod)
	rest, err := io.ReadAll(console)
	must(t, errors.Join(err, cmd.Wait()))
	_, end, _ := strings.Cut(string(rest), "the hook says good-bye")
	if !strings.Contains(end, "tiny: going down") {
		t.Errorf("the console does not show the preStop hook, and the guest's own shutdown after it:\n%s", rest)
	}
}

// fetch gets the page of a VM from within the node's network; format is curl's.
func (s space) fetch(ctx context.Context, seconds, format, url string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+shared.Node().Namespace(),
		"curl", "--silent", "--show-error", "--fail", "--max-time", seconds, "--output", "/dev/null", "--write-out", format, url).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("fetch %s: %w: %s", url, err, out)
	}
	return string(out), err
}

func (s space) ip(t *testing.T, pod string) string {
	t.Helper()
	return s.kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
}

// answersFor reaches a VM at an address which is not its pod's. Another VM, which has such
// an address too, is not allowed to answer.
func (s space) answersFor(t *testing.T, pod string) {
	const other, otherAddress = "same-everywhere", "198.51.100.8"
	s.inGuest(t, "pod/"+other, "ip address add "+otherAddress+"/32 dev lo")
	for address, via := range map[string]string{"198.51.100.7": pod, otherAddress: other} {
		args := []string{"--net=" + shared.Node().Namespace(), "ip", "route", "replace", address, "via", s.ip(t, via)}
		if out, err := exec.CommandContext(deadline(t), "nsenter", args...).CombinedOutput(); err != nil {
			t.Fatalf("make a route to the VM: %v: %s", err, out)
		}
	}
	eventually(t, "the router answers", func(ctx context.Context) error {
		_, err := s.fetch(ctx, "10", "", "http://198.51.100.7/")
		return err
	})
	if _, err := s.fetch(deadline(t), "3", "", "http://"+s.ip(t, other)+"/"); err != nil {
		t.Error(err)
	}
	if _, err := s.fetch(deadline(t), "3", "", "http://"+otherAddress+"/"); err == nil {
		t.Errorf("a VM without the annotation answers as %s", otherAddress)
	}
}

// sendsSlowly has a VM send more than passes at once. The kernel cannot let the rest pass in
// less time than this, whatever the machine does beside.
func (s space) sendsSlowly(t *testing.T, pod string) {
	const size, burst, rate = 320 << 20, 1 << 28, 100_000_000 / 8 // in bytes, and a second
	out, err := s.fetch(deadline(t), "300", "%{size_download} %{time_total}", "http://"+s.ip(t, pod)+"/large")
	must(t, err)
	var got int
	var seconds float64
	if _, err := fmt.Sscan(out, &got, &seconds); err != nil || got != size || seconds < (size-burst)/rate {
		t.Errorf("the VM sent %d bytes in %f s (%v), want %d in %d s or more", got, seconds, err, size, (size-burst)/rate)
	}
	queues, err := exec.CommandContext(deadline(t), "nsenter", "--net="+shared.Node().Namespace(), "tc", "qdisc").CombinedOutput()
	for _, rate := range []string{"rate 50Mbit", "rate 100Mbit"} {
		if err != nil || !strings.Contains(string(queues), rate) {
			t.Errorf("the node's queues lack one with %s: %v: %s", rate, err, queues)
		}
	}
}

// TestHugePagesAreCounted: where a node has no huge pages, the VM that wants some waits, and
// its event says for what.
func TestHugePagesAreCounted(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "hugepages.yaml")
	eventually(t, "the VM runs, or says what it waits for", func(ctx context.Context) error {
		ready, err := shared.Kubectl(ctx, "--namespace", s.name, "get", "pod", "huge", "-o", "jsonpath={.status.containerStatuses[0].ready}")
		if err != nil || ready == "true" {
			return err
		}
		return fixture.HasEvent(ctx, shared, s.name, "huge", "Insufficient hugepages-2Mi")
	})
}
