//go:build integration

// Package tiny_test boots the image that build.sh makes and looks whether it does
// what README.md says.
package tiny_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/cloudinit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sshKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIaLPyfsKWzT7HZ0sVsUwUSYXJLfVPMbvhFmiPXs2Vpc test@example.org"

// One guest with all that the seed may hold, over two boots.
func TestGuestWithSeed(t *testing.T) {
	document, err := cloudinit.ParseDocument([]byte(`#cloud-config
runcmd:
- echo "run $(hostname)" >>/root/runcmd
- [sh, -c, 'echo "words with $0"', blanks in them]
write_files:
- path: /etc/motd
  content: |
    first line
      indented
`))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	g := boot(t, ide, nocloud, cloudinit.Config{
		InstanceID: "boot-test-1", Hostname: "boot-test.example.org", SSHKeys: []string{sshKey},
		UserData: cloudinit.UserData{Document: document},
		WriteFiles: []cloudinit.WriteFile{
			{Path: "/etc/secret/key", Content: []byte{0, 0xff, '\r', '\n'}, Mode: 0o400},
			{Path: "/var/www/notes.txt", Content: []byte("served\n")},
		},
		Env:     []cloudinit.EnvVar{{Name: "GREETING", Value: "it's me"}},
		Process: &cloudinit.Process{Args: []string{"/bin/sh", "-c", `echo "process says $GREETING"; echo x >>/root/starts`}},
	})
	g.console.await("cloudlite: seed applied, instance boot-test-1")
	g.console.await("tiny: eth0 has 10.0.2.15/24, gateway")
	g.console.await("tiny: boot done in ")
	// Logins are possible while the seed's commands run.
	g.console.await("boot-test login: ", "process says it's me", "words with blanks in them", "cloudlite: final stage done")
	t.Logf("login prompt and end of commands after %v", time.Since(begin).Round(100*time.Millisecond))

	g.checkSeed()
	g.checkPages()
	g.checkDevices()
	g.logIn()
	g.reboot()
	g.monitor.command(t, "system_powerdown", nil, nil) // the power button
	g.awaitEnd()
}

func (g *guest) checkSeed() {
	g.t.Helper()
	g.agent.command(g.t, "guest-ping", nil, nil)
	g.expect("hostname", "boot-test\n")
	g.expect("cat /etc/motd", "first line\n  indented\n")
	g.expect("od -An -tx1 /etc/secret/key; stat -c '%a %U' /etc/secret/key", " 00 ff 0d 0a\n400 root\n")
	g.expect("cat /root/.ssh/authorized_keys; stat -c %a /root/.ssh /root/.ssh/authorized_keys", sshKey+"\n700\n600\n")
	g.expect("cat /root/runcmd", "run boot-test\n")
	g.expect(". /etc/cloud/environment; echo $GREETING", "it's me\n")
}

func (g *guest) checkPages() {
	g.t.Helper()
	if page := g.fetch("/"); !strings.Contains(page, "Hello from boot-test,") {
		g.t.Errorf("the start page does not name the host: %q", page)
	}
	if page := g.fetch("/notes.txt"); page != "served\n" {
		g.t.Errorf("got page %q", page)
	}
}

func (g *guest) checkDevices() {
	g.t.Helper()
	g.expect("[ $(df -k / | awk 'END { print $2 }') -gt 950000 ] && echo grown", "grown\n")
	g.expect("modprobe -a virtiofs virtio_mem virtio_scsi overlay && cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0\n")
	g.expect("ls /sys/bus/virtio/drivers/virtio_balloon | grep -c virtio", "1\n")
	g.expect("netstat -ltn | grep -c ':22 '", "2\n") // IPv4 and IPv6
}

func (g *guest) logIn() {
	g.t.Helper()
	g.console.send("root")
	g.console.await("Password: ")
	g.console.send("tiny")
	g.console.await("# ")
	g.console.send("echo $((6*7)) answers")
	g.console.await("42 answers")
}

func (g *guest) reboot() {
	g.t.Helper()
	// This command alone has no answer.
	if _, err := io.WriteString(g.agent.conn, `{"execute":"guest-shutdown","arguments":{"mode":"reboot"}}`+"\n"); err != nil {
		g.t.Fatal(err)
	}
	g.console.await("tiny: going down")
	g.console.await("tiny: boot done in ")
	g.console.await("boot-test login: ", "cloudlite: final stage done")
	g.expect("cat /root/runcmd", "run boot-test\n") // once for each instance
	g.expect("grep -c x /root/starts", "2\n")       // once for each boot
}

// Another bus and machine type, and addresses that do not come from DHCP.
func TestGuestWithStaticNetwork(t *testing.T) {
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, scsi, nocloud, cloudinit.Config{
		InstanceID: "static-test-1", Hostname: "static-test",
		Network: &cloudinit.NetworkConfig{Interfaces: []cloudinit.Interface{{
			MAC: mac, Name: "pod0", MTU: 1400,
			// A gateway outside the subnet, as some CNI plugins have it.
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/32"), netip.MustParsePrefix("fd00:10::15/64")},
			Routes: []cloudinit.Route{
				{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.2.2")},
				{To: netip.MustParsePrefix("192.0.2.0/24")},
				{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::2")},
			},
			DNS: cloudinit.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Search: []string{"example.org", "example.net"}},
		}}},
		UserData: cloudinit.UserData{Raw: []byte("#!/bin/sh\n. /etc/cloud/environment\necho \"script of $(hostname): $GREETING\"\n")},
		Env:      []cloudinit.EnvVar{{Name: "GREETING", Value: "hello"}}, // comes as vendor-data
	})
	g.console.await("cloudlite: pod0 has 10.0.2.15/32, fd00:10::15/64 (static)")
	g.console.await("static-test login: ", "script of static-test: hello", "cloudlite: final stage done")

	g.expect("ip -o -4 addr show dev pod0 | awk '{ print $4 }'", "10.0.2.15/32\n")
	g.expect("ip -o -6 addr show dev pod0 scope global | awk '{ print $4 }'", "fd00:10::15/64\n")
	g.expect("cat /sys/class/net/pod0/mtu", "1400\n")
	g.expect("ip -4 route show default | awk '{ print $3, $5 }'", "10.0.2.2 pod0\n")
	g.expect("ip -6 route show default | grep -c 'via fe80::2 dev pod0'", "1\n")
	g.expect("ip -4 route show 192.0.2.0/24 | awk '{ print $3 }'", "pod0\n")
	g.expect("cat /etc/resolv.conf", "search example.org example.net\nnameserver 10.0.2.3\n")
	if page := g.fetch("/"); !strings.Contains(page, "Hello from static-test,") {
		t.Errorf("the start page does not name the host: %q", page)
	}
	g.monitor.command(t, "system_powerdown", nil, nil)
	g.awaitEnd()
}

// A config drive says the same as a NoCloud seed.
func TestGuestWithConfigDrive(t *testing.T) {
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, ide, configDrive, cloudinit.Config{
		InstanceID: "drive-test-1", Hostname: "drive-test", SSHKeys: []string{sshKey},
		Network: &cloudinit.NetworkConfig{Interfaces: []cloudinit.Interface{{
			MAC: mac, Name: "eth0",
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fd00:10::15/64")},
			Routes:    []cloudinit.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.2.2")}},
			DNS:       cloudinit.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Search: []string{"example.org"}},
		}}},
		WriteFiles: []cloudinit.WriteFile{{Path: "/etc/from-drive", Content: []byte("drive\n")}},
	})
	g.console.await("cloudlite: eth0 has 10.0.2.15/24, fd00:10::15/64 (static)")
	g.console.await("drive-test login: ", "cloudlite: final stage done")

	g.expect("cat /etc/from-drive /root/.ssh/authorized_keys", "drive\n"+sshKey+"\n")
	g.expect("ip -o -6 addr show dev eth0 | awk '{ print $4 }' | grep -c fd00:10::15/64", "1\n")
	g.expect("cat /etc/resolv.conf", "search example.org\nnameserver 10.0.2.3\n")
	if page := g.fetch("/"); !strings.Contains(page, "Hello from drive-test,") {
		t.Errorf("the start page does not name the host: %q", page)
	}
}
