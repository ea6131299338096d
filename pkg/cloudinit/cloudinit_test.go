package cloudinit

import (
	"bytes"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mac(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	address, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func minimal() Config {
	return Config{InstanceID: "4a2fd0c3-web", Hostname: "web"}
}

// everything sets each field once.
func everything(t *testing.T) Config {
	t.Helper()
	user, err := ParseDocument([]byte(`#cloud-config
package_update: false
runcmd:
- echo from the user
write_files:
- path: /etc/motd
  content: "user\n"
`))
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		InstanceID: "1c1cb02e-db",
		Hostname:   "db.example.org",
		SSHKeys:    []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== me@example.org"},
		MetaData:   map[string]any{"local-hostname": "db0", "region": "north"},
		UserData:   UserData{Document: user},
		Network: &NetworkConfig{Interfaces: []Interface{
			{
				MAC: mac(t, "52:54:00:AA:00:01"), Name: "eth0", MTU: 1450,
				Addresses: prefixes("10.244.1.7/24", "fd00:10::7/64"),
				Routes: []Route{
					{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.244.1.1")},
					{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::1"), Metric: 100},
				},
				DNS: DNS{Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Search: []string{"ns.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5", "rotate"}},
			},
			{
				MAC: mac(t, "52:54:00:aa:00:02"), Name: "net1",
				Addresses: prefixes("192.168.7.2/32"),
				Routes: []Route{
					{To: netip.MustParsePrefix("169.254.1.1/32")},
					{To: netip.MustParsePrefix("10.9.3.4/16"), Via: netip.MustParseAddr("169.254.1.1")},
					{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:20::1")},
					{To: netip.MustParsePrefix("172.16.0.0/12")},
				},
			},
			{MAC: mac(t, "52:54:00:aa:00:03"), Name: "net2", DHCP4: true, DHCP6: true},
		}},
		WriteFiles: []WriteFile{
			{Path: "/etc/config/a", Content: []byte("plain: \"text\"\n# yes\n")},
			{Path: "/etc/secret/key", Content: []byte{0, 1, 0xfe, '\n'}, Mode: 0o400, Owner: "root:adm"},
			{Path: "/etc/config/empty", Content: nil},
			{Path: "/etc/config/crlf", Content: []byte("one\r\ntwo\r\n")},
			{Path: "/etc/config/indented", Content: []byte("  starts with blanks\n")},
			{Path: "/etc/config/no-end", Content: []byte("yes")},
		},
		Mounts: []Mount{
			{Device: "data", Dir: "/mnt/data", Type: "virtiofs"},
			{Device: "LABEL=scratch", Dir: "/mnt/scratch", Options: "defaults,ro,nofail"},
		},
		BootCmd: []Command{{"modprobe", "virtiofs"}},
		RunCmd:  []Command{{"touch", "/run/done by ambipod"}},
		Env:     []EnvVar{{"PLAIN", "a/b:c"}, {"QUOTED", "it's $HOME\nnext"}, {"with.dot", "x"}, {"EMPTY", ""}},
		Process: &Process{Args: []string{"/bin/sh", "-c", "echo $PLAIN"}, Dir: "/srv/my app"},
	}
}

func TestNoCloudGolden(t *testing.T) {
	scripted := everything(t)
	scripted.UserData = UserData{Raw: []byte("#!/bin/sh\necho raw\n")}
	scripted.Network = nil
	bare := minimal()
	bare.UserData.Raw = []byte("#!/bin/sh\necho raw\n")
	old := everything(t)
	old.NetworkV1 = true
	old.Network.Interfaces[1].Routes = nil // of no use to version 1
	old.Network.Interfaces[0].Routes = append(old.Network.Interfaces[0].Routes,
		Route{To: netip.MustParsePrefix("10.9.3.4/16"), Via: netip.MustParseAddr("10.244.1.9")})
	for name, c := range map[string]Config{
		"network-v1":  old,
		"minimal":     minimal(),
		"everything":  everything(t),
		"raw":         scripted,
		"raw-minimal": bare,
	} {
		t.Run(name, func(t *testing.T) {
			files, err := NoCloud(c)
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "nocloud", name), files)
		})
	}
}

// compareGolden compares all files of a folder, so that a file too many or too
// few is found as well.
func compareGolden(t *testing.T, dir string, files Files) {
	t.Helper()
	if *update {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := Files{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(texts(want), texts(files)); diff != "" {
		t.Errorf("documents differ (-golden +built); run with -update if that is meant:\n%s", diff)
	}
}

func texts(files Files) map[string]string {
	all := map[string]string{}
	for name, content := range files {
		all[name] = string(content)
	}
	return all
}

// Content must arrive as it was, whichever way it travels.
func TestWriteFilesRoundTrip(t *testing.T) {
	c := minimal()
	for i, content := range []string{
		"", "\n", " ", "\n\n x", "a", "a\n", "a\n\n", "  a\n b\n", "- x\n", "yes", "0644", "'\"\\", "#x\n", "a: b\n",
		"tab\t\n", "cr\r\n", "nul\x00", "\xff\xfe", "ünïcode\n", "trailing \n", "...\n", "---\n", "%YAML\n", strings.Repeat("long ", 500) + "\n",
	} {
		c.WriteFiles = append(c.WriteFiles, WriteFile{Path: "/f/" + string(rune('a'+i)), Content: []byte(content)})
	}
	files, err := NoCloud(c)
	if err != nil {
		t.Fatal(err)
	}
	assertWriteFiles(t, files["user-data"], c.WriteFiles)
}

// assertWriteFiles reads a cloud-config as a guest does.
func assertWriteFiles(t *testing.T, userData []byte, want []WriteFile) {
	t.Helper()
	var doc struct {
		WriteFiles []struct {
			Path, Content, Encoding string
			Binary                  []byte
		} `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(userData, &doc); err != nil {
		t.Fatalf("user-data is not YAML: %v\n%s", err, userData)
	}
	if len(doc.WriteFiles) != len(want) {
		t.Fatalf("%d files arrived, want %d", len(doc.WriteFiles), len(want))
	}
	for i, got := range doc.WriteFiles {
		content := []byte(got.Content)
		if got.Encoding == "b64" {
			content = decodeBase64(t, got.Content)
		}
		if got.Path != want[i].Path || !bytes.Equal(content, want[i].Content) {
			t.Errorf("file %s: got %q, want %q", got.Path, content, want[i].Content)
		}
	}
}

func TestInvalidConfigs(t *testing.T) {
	nic := func(change func(*Interface)) func(*Config) {
		return func(c *Config) {
			i := Interface{MAC: mac(t, "52:54:00:aa:00:01"), Name: "eth0"}
			change(&i)
			c.Network = &NetworkConfig{Interfaces: []Interface{i}}
		}
	}
	for name, change := range map[string]func(*Config){
		"no instance ID":          func(c *Config) { c.InstanceID = "" },
		"instance ID with blank":  func(c *Config) { c.InstanceID = "a b" },
		"no hostname":             func(c *Config) { c.Hostname = "" },
		"hostname with underline": func(c *Config) { c.Hostname = "a_b" },
		"hostname too long":       func(c *Config) { c.Hostname = strings.Repeat("abcdefg.", 32) + "a" },
		"label too long":          func(c *Config) { c.Hostname = strings.Repeat("a", 64) },
		"two keys in one":         func(c *Config) { c.SSHKeys = []string{"ssh-rsa AAAA\nssh-rsa BBBB"} },
		"no key":                  func(c *Config) { c.SSHKeys = []string{"ssh-rsa"} },
		"raw and document":        func(c *Config) { c.UserData = UserData{Raw: []byte("x"), Document: parse(t, "a: 1")} },
		"relative file":           func(c *Config) { c.WriteFiles = []WriteFile{{Path: "etc/x"}} },
		"file with dots":          func(c *Config) { c.WriteFiles = []WriteFile{{Path: "/etc/../x"}} },
		"mode with type":          func(c *Config) { c.WriteFiles = []WriteFile{{Path: "/x", Mode: os.ModeDir | 0o755}} },
		"odd owner":               func(c *Config) { c.WriteFiles = []WriteFile{{Path: "/x", Owner: "a b"}} },
		"mount without device":    func(c *Config) { c.Mounts = []Mount{{Dir: "/x"}} },
		"mount on a name":         func(c *Config) { c.Mounts = []Mount{{Device: "d", Dir: "x"}} },
		"variable with equals":    func(c *Config) { c.Env = []EnvVar{{"A=B", "x"}} },
		"variable without name":   func(c *Config) { c.Env = []EnvVar{{"", "x"}} },
		"variable with zero byte": func(c *Config) { c.Env = []EnvVar{{"A", "\x00"}} },
		"empty command":           func(c *Config) { c.RunCmd = []Command{{}} },
		"empty process":           func(c *Config) { c.Process = &Process{} },
		"process in a name":       func(c *Config) { c.Process = &Process{Args: []string{"a"}, Dir: "b"} },
		"meta-data not JSON":      func(c *Config) { c.MetaData = map[string]any{"a": map[any]any{1: 2}} },
		"interface without name":  nic(func(i *Interface) { i.Name = "" }),
		"interface name too long": nic(func(i *Interface) { i.Name = "abcdefghijklmnop" }),
		"no MAC":                  nic(func(i *Interface) { i.MAC = nil }),
		"MTU too small":           nic(func(i *Interface) { i.MTU = 67 }),
		"MTU too small for IPv6":  nic(func(i *Interface) { i.MTU = 1279; i.Addresses = prefixes("fd00::1/64") }),
		"empty address":           nic(func(i *Interface) { i.Addresses = []netip.Prefix{{}} }),
		"route of two families": nic(func(i *Interface) {
			i.Routes = []Route{{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("10.0.0.1")}}
		}),
		"empty DNS server": nic(func(i *Interface) { i.DNS.Servers = []netip.Addr{{}} }),
		"two interfaces of one name": func(c *Config) {
			c.Network = &NetworkConfig{Interfaces: []Interface{
				{MAC: mac(t, "52:54:00:aa:00:01"), Name: "eth0"}, {MAC: mac(t, "52:54:00:aa:00:02"), Name: "eth0"},
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := minimal()
			change(&c)
			if _, err := NoCloud(c); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got error %v, want an invalid argument", err)
			}
		})
	}
}
