package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a machine in a folder, whose commands are recorded instead of executed.
type rig struct {
	machine
	t        *testing.T
	said     bytes.Buffer
	commands []string
	broken   map[string]bool // commands that fail
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, broken: map[string]bool{}}
	r.machine = machine{root: t.TempDir(), console: &r.said, exec: func(c command, output io.Writer) error {
		line := strings.Join(c, " ")
		r.commands = append(r.commands, line)
		if r.broken[line] {
			return errors.New("broken")
		}
		_, err := io.WriteString(output, "did "+line+"\n")
		return err
	}}
	r.addCard("eth0", "52:54:00:00:00:01")
	if err := os.MkdirAll(r.path("/sys/class/net/lo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(r.path("/var/log"), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) addCard(name, mac string) {
	r.t.Helper()
	dir := r.path("/sys/class/net/" + name)
	if err := os.MkdirAll(filepath.Join(dir, "device"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "address"), []byte(mac+"\n"), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) boot(s seed) error {
	if err := os.RemoveAll(r.path("/run")); err != nil {
		r.t.Fatal(err)
	}
	r.commands = nil
	r.said.Reset()
	return r.local(func() (seed, error) { return s, nil })
}

func (r *rig) expectFile(name, want string) {
	r.t.Helper()
	got, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Error(err)
	} else if string(got) != want {
		r.t.Errorf("%s holds %q, want %q", name, got, want)
	}
}

func (r *rig) expectCommands(want ...string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.commands); diff != "" {
		r.t.Errorf("commands (-want +got):\n%s", diff)
	}
}

func TestNoSeed(t *testing.T) {
	r := newRig(t)
	r.addCard("eth1", "52:54:00:00:00:02")
	if err := r.local(func() (seed, error) { return seed{}, errNoSeed }); err != nil {
		t.Fatal(err)
	}
	r.expectCommands()
	r.expectFile(dhcpList, "eth0\neth1\n")
}

func TestUnreadableSeedLeavesDHCP(t *testing.T) {
	r := newRig(t)
	broken := errors.New("broken disk")
	if err := r.local(func() (seed, error) { return seed{}, broken }); !errors.Is(err, broken) {
		t.Errorf("got error %v", err)
	}
	r.expectFile(dhcpList, "eth0\n")
}

func TestFirstAndSecondBoot(t *testing.T) {
	r := newRig(t)
	s := seed{
		metaData: []byte(`{"instance-id": "one", "local-hostname": "web.example.org", "public-keys": ["ssh-ed25519 AAAA a"]}`),
		userData: []byte(`#cloud-config
ssh_authorized_keys: [ssh-rsa BBBB b]
write_files:
- {path: /etc/a, content: "text\n", permissions: 0600}
- {path: /etc/b, content: aGVs bG8=, encoding: b64}
- {path: /etc/b, content: " again", append: true}
mounts: [[data, /mnt/data, virtiofs, "ro,nofail"], [swap, none]]
bootcmd: [early]
runcmd: [late]
`),
	}
	if err := r.boot(s); err != nil {
		t.Fatal(err)
	}
	r.expectCommands("hostname web", "/bin/sh -c early", "mount -t virtiofs -o ro data /mnt/data")
	r.expectFile("/etc/hostname", "web\n")
	r.expectFile("/etc/a", "text\n")
	r.expectFile("/etc/b", "hello again")
	r.expectFile("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA a\nssh-rsa BBBB b\n")
	r.expectFile("/home/tiny/.ssh/authorized_keys", "ssh-ed25519 AAAA a\nssh-rsa BBBB b\n")
	if info, err := os.Stat(r.path("/etc/a")); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode of /etc/a is %v (%v)", info.Mode(), err)
	}
	r.commands = nil
	if err := r.final(); err != nil {
		t.Fatal(err)
	}
	r.expectCommands("/bin/sh -c late")
	r.expectFile(outputFile, "did /bin/sh -c late\n")

	if err := os.WriteFile(r.path("/etc/a"), []byte("changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	perBoot := r.path(perBootDir + "/10-hello")
	if err := r.writeFile(perBootDir+"/10-hello", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.boot(s); err != nil {
		t.Fatal(err)
	}
	r.expectFile("/etc/a", "changed\n")
	r.expectCommands("hostname web", "/bin/sh -c early", "mount -t virtiofs -o ro data /mnt/data")
	r.commands = nil
	if err := r.final(); err != nil {
		t.Fatal(err)
	}
	r.expectCommands(perBoot)

	s.metaData = []byte("instance-id: two\n")
	s.userData = []byte("#!/bin/sh\nscript\n")
	if err := r.boot(s); err != nil {
		t.Fatal(err)
	}
	r.commands = nil
	if err := r.final(); err != nil {
		t.Fatal(err)
	}
	r.expectCommands(perBoot, r.path(scriptFile))
}

// One thing that is wrong must not keep the others from being done.
func TestProblemsAreReported(t *testing.T) {
	r := newRig(t)
	r.broken["/bin/sh -c early"] = true
	err := r.boot(seed{
		metaData: []byte("instance-id: x\nlocal-hostname: web\n"),
		userData: []byte(`#cloud-config
packages: [vim]
users: [me]
bootcmd: [early, then]
manage_resolv_conf: true
resolv_conf: {nameservers: [10.0.0.10], searchdomains: [a.example], options: {rotate: true, ndots: "5"}}
write_files: [{path: relative}, {path: /etc/x, encoding: rot13}, {path: /etc/y, content: "!", encoding: b64}, {path: /etc/good}]
`),
	})
	for _, want := range []string{"early", "relative", "rot13", "/etc/y"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %s: %v", want, err)
		}
	}
	r.expectFile("/etc/good", "")
	r.expectFile("/etc/resolv.conf", "search a.example\nnameserver 10.0.0.10\noptions ndots:5\noptions rotate\n")
	r.expectCommands("hostname web", "/bin/sh -c early", "/bin/sh -c then")
	for _, key := range []string{"packages", "users"} {
		if !strings.Contains(r.said.String(), "user-data: "+key+" is not understood") {
			t.Errorf("key %s is ignored in silence: %s", key, r.said.String())
		}
	}
}

func TestBrokenNetworkConfigLeavesDHCP(t *testing.T) {
	for _, document := range []string{
		"version: 1\n", "version: 2\nethernets: []\n", "{", "version: 2\nethernets: {a: {match: {macaddress: '52:54:00:00:00:09'}}}\n",
		"version: 2\nethernets: {eth0: {addresses: [10.0.0.1]}}\n",
	} {
		r := newRig(t)
		if err := r.network([]byte(document)); err == nil {
			t.Errorf("%q was accepted", document)
		}
		r.expectFile(dhcpList, "eth0\n")
		r.expectCommands()
	}
}

func TestNetwork(t *testing.T) {
	r := newRig(t)
	r.addCard("eth1", "52:54:00:00:00:02")
	r.addCard("eth2", "52:54:00:00:00:03")
	if err := r.network([]byte(`network:
  version: 2
  ethernets:
    nic0:
      match: {macaddress: "52:54:00:00:00:01"}
      set-name: pod0
      mtu: 1400
      accept-ra: false
      addresses: [10.1.0.5/32, "fd00::5/64"]
      gateway6: fd00::1
      routes: [{to: 0.0.0.0/0, via: 169.254.1.1, on-link: true}, {to: 10.9.0.0/16, scope: link, metric: 5}]
      nameservers: {search: [a.example], addresses: [10.0.0.10, "fd00::10"]}
    eth1: {dhcp4: true}
`)); err != nil {
		t.Fatal(err)
	}
	r.expectCommands(
		"sysctl -q -w net/ipv6/conf/eth1/accept_dad=0",
		"ip link set dev eth1 up",
		"ip link set dev eth0 down",
		"ip link set dev eth0 name pod0",
		"ip link set dev pod0 mtu 1400",
		"sysctl -q -w net/ipv6/conf/pod0/accept_ra=0",
		"sysctl -q -w net/ipv6/conf/pod0/accept_dad=0",
		"ip link set dev pod0 up",
		"ip addr add 10.1.0.5/32 dev pod0",
		"ip addr add fd00::5/64 dev pod0",
		"ip route replace 169.254.1.1 dev pod0",
		"ip route replace 0.0.0.0/0 via 169.254.1.1 dev pod0",
		"ip route replace 10.9.0.0/16 dev pod0 metric 5",
		"ip route replace default via fd00::1 dev pod0",
	)
	r.expectFile(dhcpList, "eth1\n")
	r.expectFile("/etc/resolv.conf", "search a.example\nnameserver 10.0.0.10\nnameserver fd00::10\n")
}

func TestPublicKeyForms(t *testing.T) {
	for _, text := range []string{
		"public-keys: [k1, k2]", "public-keys: {a: k1, b: k2}", "public-keys: {'0': {openssh-key: k1}, '1': {openssh-key: k2}}", `{"public-keys": [["k1"], "k2"]}`,
	} {
		m, err := parseMetaData([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(keyList{"k1", "k2"}, m.PublicKeys); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

func TestParseUserData(t *testing.T) {
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write([]byte("#cloud-config\nruncmd: [[a, b c], d]\n")); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	u, err := parseUserData(zipped.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]command{{"a", "b c"}, {"/bin/sh", "-c", "d"}}, u.config.RunCmd); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"hello", "#cloud-config\n- a\n", "#cloud-boothook\n", "#cloud-config\nwrite_files: [{path: /x, permissions: rw}]", "\x1f\x8bbroken"} {
		if _, err := parseUserData([]byte(text)); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestReadSeed(t *testing.T) {
	s, err := readSeed(fstest.MapFS{"user-data": {Data: []byte("x")}, "meta-data": {Data: []byte("y")}})
	if err != nil || string(s.userData) != "x" || string(s.metaData) != "y" || s.networkConfig != nil {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := readSeed(fstest.MapFS{"user-data": {Data: make([]byte, maxSeedFile+1)}}); err == nil {
		t.Error("a file of any size was accepted")
	}
}

// A config drive says the same as a seed.
func TestReadDrive(t *testing.T) {
	s, err := readDrive(fstest.MapFS{
		"openstack/latest/meta_data.json":   {Data: []byte(`{"uuid": "one", "hostname": "web", "public_keys": {"0": "ssh-rsa AAAA"}}`)},
		"openstack/latest/user_data":        {Data: []byte("#!/bin/sh\nscript\n")},
		"openstack/latest/vendor_data.json": {Data: []byte(`{"cloud-init": "#cloud-config\nwrite_files: [{path: /etc/v, content: v}]\n"}`)},
		"openstack/latest/network_data.json": {Data: []byte(`{
			"links": [{"id": "a", "name": "pod0", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:01", "mtu": 1400}],
			"networks": [
				{"link": "a", "type": "ipv4", "ip_address": "10.1.0.5", "netmask": "255.255.255.0", "dns_search": ["a.example"],
				 "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"}]},
				{"link": "a", "type": "ipv6", "ip_address": "fd00::5", "netmask": "ffff:ffff:ffff:ffff::",
				 "routes": [{"network": "::", "netmask": "::", "gateway": "fe80::1"}]}],
			"services": [{"type": "dns", "address": "10.0.0.10"}]}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	if err := r.boot(s); err != nil {
		t.Fatal(err)
	}
	r.expectCommands(
		"hostname web",
		"ip link set dev eth0 down",
		"ip link set dev eth0 name pod0",
		"ip link set dev pod0 mtu 1400",
		"sysctl -q -w net/ipv6/conf/pod0/accept_dad=0",
		"ip link set dev pod0 up",
		"ip addr add 10.1.0.5/24 dev pod0",
		"ip addr add fd00::5/64 dev pod0",
		"ip route replace 0.0.0.0/0 via 10.1.0.1 dev pod0",
		"ip route replace ::/0 via fe80::1 dev pod0",
	)
	r.expectFile("/etc/resolv.conf", "search a.example\nnameserver 10.0.0.10\n")
	r.expectFile("/root/.ssh/authorized_keys", "ssh-rsa AAAA\n")
	r.expectFile("/etc/v", "v")
	r.expectFile(scriptFile, "#!/bin/sh\nscript\n")
}

func TestReadDriveRefusals(t *testing.T) {
	meta := &fstest.MapFile{Data: []byte("{}")}
	for name, files := range map[string]fstest.MapFS{
		"no meta-data":     {"openstack/latest/user_data": {Data: []byte("x")}},
		"meta-data broken": {"openstack/latest/meta_data.json": {Data: []byte("{")}},
		"vendor broken":    {"openstack/latest/meta_data.json": meta, "openstack/latest/vendor_data.json": {Data: []byte("[]")}},
		"network broken":   {"openstack/latest/meta_data.json": meta, "openstack/latest/network_data.json": {Data: []byte("[]")}},
		"wrong netmask": {"openstack/latest/meta_data.json": meta, "openstack/latest/network_data.json": {Data: []byte(
			`{"links": [{"id": "a"}], "networks": [{"link": "a", "type": "ipv4", "ip_address": "10.0.0.1", "netmask": "ffff::"}]}`)}},
		"unknown type": {"openstack/latest/meta_data.json": meta, "openstack/latest/network_data.json": {Data: []byte(
			`{"links": [{"id": "a"}], "networks": [{"link": "a", "type": "ipx"}]}`)}},
	} {
		if _, err := readDrive(files); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// User-data wins over vendor-data, key by key.
func TestVendorData(t *testing.T) {
	r := newRig(t)
	err := r.boot(seed{
		metaData:   []byte("instance-id: x\n"),
		userData:   []byte("#cloud-config\nbootcmd: [user]\n"),
		vendorData: []byte("#cloud-config\nbootcmd: [vendor]\nhostname: web\nwrite_files: [{path: /etc/v}]\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.expectCommands("hostname web", "/bin/sh -c user")
	r.expectFile("/etc/v", "")
}

func TestISOLabel(t *testing.T) {
	disk := make([]byte, descriptorOffset+2048)
	copy(disk[descriptorOffset:], "\x01CD001\x01")
	copy(disk[descriptorOffset+labelOffset:], "CIDATA                          ")
	for name, test := range map[string]struct {
		content []byte
		want    string
	}{
		"labelled": {disk, "CIDATA"}, "short": {disk[:100], ""}, "other": {make([]byte, len(disk)), ""},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := isoLabel(path); got != test.want {
			t.Errorf("%s: label is %q, want %q", name, got, test.want)
		}
	}
}

func TestEnlarge(t *testing.T) {
	newSector := func() []byte {
		sector := make([]byte, sectorSize)
		binary.LittleEndian.PutUint16(sector[signatureStart:], bootSignature)
		binary.LittleEndian.PutUint32(sector[tableOffset+entrySize+startOffset:], 2048)
		binary.LittleEndian.PutUint32(sector[tableOffset+entrySize+lengthOffset:], 1000)
		return sector
	}
	for name, test := range map[string]struct {
		p    partition
		want uint64
	}{
		"grown":             {partition{number: 2, start: 2048, length: 1000, diskSectors: 100_000}, 97_952},
		"limit of an MBR":   {partition{number: 2, start: 2048, diskSectors: 1 << 40}, maxMBRSectors},
		"other partition":   {partition{number: 1, start: 2048, diskSectors: 100_000}, 0},
		"logical partition": {partition{number: 5, start: 2048, diskSectors: 100_000}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			sector := newSector()
			length, err := enlarge(sector, test.p)
			if (err != nil) != (test.want == 0) || length != test.want {
				t.Errorf("got %d, %v; want %d", length, err, test.want)
			}
			if err == nil && uint64(binary.LittleEndian.Uint32(sector[tableOffset+entrySize+lengthOffset:])) != test.want {
				t.Error("the table was not changed")
			}
		})
	}
	if _, err := enlarge(make([]byte, sectorSize), partition{number: 1, diskSectors: 10}); err == nil {
		t.Error("a disk without partition table was accepted")
	}
}

func TestFindPartition(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"devices/vda/size": "4096\n", "devices/vda/vda1/partition": "1\n", "devices/vda/vda1/start": "2048\n", "devices/vda/vda1/size": "1024\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("devices/vda/vda1", filepath.Join(dir, "vda1")); err != nil {
		t.Fatal(err)
	}
	got, err := findPartition(dir, "vda1")
	if err != nil {
		t.Fatal(err)
	}
	if want := (partition{disk: "/dev/vda", number: 1, start: 2048, length: 1024, diskSectors: 4096}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := findPartition(dir, "vdb1"); err == nil {
		t.Error("a partition that is missing was found")
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte("#cloud-config\nruncmd: [a]\nwrite_files: [{path: /x, permissions: 0644}]"), []byte("version: 2\nethernets: {a: {addresses: [1.2.3.4/5]}}"), []byte("public-keys: {a: {b: c}}"))
	f.Fuzz(func(_ *testing.T, user, network, meta []byte) {
		_, _ = parseUserData(user)
		_, _ = parseMetaData(meta)
		_, _ = planFrom(network, []card{{"a", "52:54:00:00:00:01"}})
	})
}
