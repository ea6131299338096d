package proxy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const goodConfig = `# a comment
listen: /run/x.sock
stateDir: /run/x
metricsAddress: unix:/run/m.sock
backends:
- name: containerd
  default: true
  socket: /run/containerd/containerd.sock
- name: vm
  socket: /run/vm.sock
  idPrefix: vm.
  imagePrefixes: [vm.ambipod.io, "virtlet.cloud"]
  runtimeHandlers: [vm]
  annotations:
  - {key: a/b, values: [vm, other]}
`

func TestConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "criproxy.yaml")
	if err := os.WriteFile(path, []byte(goodConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Listen: "/run/x.sock", StateDir: "/run/x", MetricsAddress: "unix:/run/m.sock",
		Backends: []BackendConfig{
			{Name: "containerd", Default: true, Socket: "/run/containerd/containerd.sock"},
			{
				Name: "vm", Socket: "/run/vm.sock", IDPrefix: "vm.", ImagePrefixes: []string{"vm.ambipod.io", "virtlet.cloud"},
				RuntimeHandlers: []string{"vm"}, Annotations: []Annotation{{Key: "a/b", Values: []string{"vm", "other"}}},
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := LoadConfig(path + ".absent"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path+".absent") {
		t.Errorf("error %v, want one that names the absent file", err)
	}
}

func TestEmptyConfigIsTheDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "{}\n"} {
		got, err := ParseConfig("f", []byte(text))
		if err != nil || !reflect.DeepEqual(got, DefaultConfig()) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if p := DefaultConfig().validate(); p != nil {
		t.Errorf("the default configuration is wrong: %v", p)
	}
	if address := DefaultConfig().MetricsAddress; address != "" {
		t.Errorf("metrics are served at %s though nobody asked for them", address)
	}
}

type badConfig struct{ text, sentence string }

// badConfigs are mistakes and what is said about each.
func badConfigs() []badConfig {
	change := func(old, new string) string { return strings.Replace(goodConfig, old, new, 1) }
	return []badConfig{
		{"listen: [", "line 1: the file is no YAML: did not find expected node content"},
		{"\tlisten: x", "line 1: the file is no YAML: found character that cannot start any token"},
		{"- a", "line 1, top level: must be a mapping of keys to values"},
		{change("listen:", "lisen:"), "line 2, lisen: unknown field"},
		{change("  idPrefix:", "  idprefix:"), "line 11, backends[1].idprefix: unknown field"},
		{change("{key: a/b, values", "{key: a/b, value"), "line 15, backends[1].annotations[0].value: unknown field"},
		{change("stateDir: /run/x\n", "stateDir: /run/x\nstateDir: /run/y\n"), "line 4, stateDir: given twice"},
		{change("default: true", "default: maybe"), "line 7, backends[0].default: must be true or false"},
		{change("  default: true\n", ""), "line 5, backends: 0 backends have default: true, exactly one must"},
		{change("name: vm\n", "name: vm\n  default: true\n"), "line 5, backends: 2 backends have default: true, exactly one must"},
		{change("  default: true\n", "  default: true\n  imagePrefixes: [a.b]\n"), "line 8, backends[0].imagePrefixes: the default backend's IDs and images have no prefix: remove it"},
		{change("runtimeHandlers: [vm]", `runtimeHandlers: [""]`), "line 13, backends[1].runtimeHandlers[0]: must not be empty"},
		{change("key: a/b", `key: ""`), "line 15, backends[1].annotations[0].key: must not be empty"},
		{change("values: [vm, other]", "values: []"), "line 15, backends[1].annotations[0].values: must not be empty"},
		{change("  default: true\n", "  default: true\n  idPrefix: x.\n"), "line 8, backends[0].idPrefix: the default backend's IDs and images have no prefix: remove it"},
		{change("idPrefix: vm.", "idPrefix: vm-"), `line 11, backends[1].idPrefix: "vm-" is no prefix for IDs: use lower-case letters and digits and a dot at the end, such as "vm."`},
		{change("  idPrefix: vm.\n", ""), `line 9, backends[1].idPrefix: "" is no prefix for IDs: use lower-case letters and digits and a dot at the end, such as "vm."`},
		{change("[vm.ambipod.io,", "[vm.ambipod.io/,"), `line 12, backends[1].imagePrefixes[0]: "vm.ambipod.io/" is no prefix for images: give whole path segments without a slash at either end`},
		{change("socket: /run/vm.sock", "socket: vm.sock"), `line 10, backends[1].socket: "vm.sock" is no absolute path`},
		{change("socket: /run/vm.sock", "socket: /run/containerd/containerd.sock"), `line 10, backends[1].socket: socket "/run/containerd/containerd.sock" already belongs to backend containerd`},
		{change("socket: /run/vm.sock", "socket: /run//x.sock"), `line 10, backends[1].socket: "/run//x.sock" is where criproxy itself listens, name the runtime's`},
		{change("name: vm\n", "name: containerd\n"), `line 9, backends[1].name: name "containerd" already belongs to backend containerd`},
		{change("name: vm\n", "name: V M\n"), `line 9, backends[1].name: "V M" is no name: use lower-case letters, digits and dashes`},
		{change("runtimeHandlers: [vm]", "runtimeHandlers: vm"), "line 13, backends[1].runtimeHandlers: must be a list"},
		{change("runtimeHandlers: [vm]", "runtimeHandlers: [vm, vm]"), `line 13, backends[1].runtimeHandlers[1]: runtime handler "vm" already belongs to backend vm`},
		{change("runtimeHandlers: [vm]", "runtimeHandlers: [1]"), "line 13, backends[1].runtimeHandlers[0]: must be a string"},
		{change("listen: /run/x.sock", "listen: 7"), "line 2, listen: must be a string"},
		{change("listen: /run/x.sock", "listen: /"+strings.Repeat("x", 107)), "line 2, listen: the path has 108 bytes, at most 107 fit into a socket address"},
		{change("unix:/run/m.sock", "9100"), "line 4, metricsAddress: must be a string"},
		{change("unix:/run/m.sock", "localhost"), `line 4, metricsAddress: "localhost" is neither host:port nor unix:/path`},
		{change("backends:\n", "backends: {}\nx:\n"), "line 5, backends: must be a list"},
		{"backends: []\n", "line 1, backends: 0 backends have default: true, exactly one must"},
		{"backends:\n- x\n", "line 2, backends[0]: must be a mapping of keys to values"},
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range badConfigs() {
		_, err := ParseConfig("/etc/c.yaml", []byte(c.text))
		if want := "/etc/c.yaml, " + c.sentence; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestConfigFromTheCommandLine(t *testing.T) {
	c, err := DefaultConfig().With("/run/other.sock", "/run/state")
	if err != nil || c.Listen != "/run/other.sock" || c.StateDir != "/run/state" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := DefaultConfig().With("relative", ""); err == nil || err.Error() != `command line, listen: "relative" is no absolute path` {
		t.Errorf("error %v", err)
	}
}
