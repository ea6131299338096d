//go:build e2e

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

func (v vmctl) inspect(t *testing.T) {
	text := v.run(t, "inspect", v.name(), "-o", "json")
	var got struct {
		VM    item
		Disks []struct{ Path string }
		// What CRI and libvirt say.
		DomainXML string
		Container struct {
			Info struct {
				Cgroup string
			}
		}
		Sandbox struct {
			Info struct{ Network map[string]any }
		}
		Problems []string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.VM.Pod != v.config.GetMetadata().GetName() || len(got.Disks) == 0 || !strings.Contains(got.Disks[0].Path, "root.qcow2") ||
		got.Container.Info.Cgroup == "" || len(got.Sandbox.Info.Network) == 0 || !strings.Contains(got.DomainXML, "<domain") || len(got.Problems) != 0 {
		t.Errorf("something is missing: %s", text)
	}
	if strings.Contains(text, planted) {
		t.Errorf("a secret is shown: %s", text)
	}
	if !strings.Contains(text, "PLANTED") || !strings.Contains(text, `"vm.ambipod.io/screen": "true"`) {
		t.Errorf("too much is hidden: %s", text)
	}
}

// diagnose looks for all that belongs into an archive, and for what does not.
func (v vmctl) diagnose(t *testing.T) {
	dir := t.TempDir()
	file, config, log := filepath.Join(dir, "a.tar.gz"), filepath.Join(dir, "conf"), filepath.Join(dir, "daemon.log")
	if err := errors.Join(
		os.Mkdir(config, 0o700),
		os.WriteFile(filepath.Join(config, "images.yaml"), []byte("url: https://me:"+planted+"@host/disk\npassword: "+planted+"\n"), 0o600),
		os.WriteFile(log, []byte("Authorization: Bearer "+planted+"\nharmless line\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	v.run(t, "diagnose", "-f", file, "--config", config, "--log", log, "--log", v.n.LogFile(node.VMRuntime))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive: %v, %v", info, err)
	}
	members := unpack(t, file)
	for name, want := range map[string]string{
		"README.txt":                                         "Secrets are removed",
		"versions.json":                                      `"libvirt"`,
		"cri/runtime/ListContainers.json":                    strings.TrimPrefix(v.id, "vm."),
		"cri/criproxy/ListPodSandbox.json":                   v.sandboxID,
		"cri/runtime/Status.json":                            "RuntimeReady",
		"status/vmruntime/metrics.txt":                       "ambipod_vms",
		"status/vmruntime/goroutines.txt":                    "goroutine ",
		"daemons/runtime/cmdline":                            "vmruntime",
		"daemons/criproxy/status":                            "VmRSS",
		"config" + filepath.Join(config, "images.yaml"):      "https://[redacted]@host/disk",
		"logs" + log + "/daemon.log":                         "harmless line",
		"logs" + v.n.LogFile("vmruntime") + "/vmruntime.log": "serving",
		"host/facts.json":                                    "kernel",
		"host/proc/meminfo":                                  "MemTotal",
	} {
		if !strings.Contains(members[name], want) {
			t.Errorf("%s lacks %q: %.300q", name, want, members[name])
		}
	}
	var domain, emulator bool
	for name, content := range members {
		if strings.Contains(content, planted) {
			t.Errorf("%s has a secret: %s", name, content)
		}
		domain = domain || strings.HasPrefix(name, "vms/") && strings.Contains(content, "AMBIPOD_FD_KEY")
		emulator = emulator || strings.HasPrefix(name, "logs/qemu/") && strings.Contains(content, "AMBIPOD_FD_KEY=[redacted]")
	}
	if !domain || !emulator {
		t.Errorf("libvirt's description is there: %t, QEMU's log: %t; %v", domain, emulator, slices.Sorted(maps.Keys(members)))
	}
	if problems := members["problems.txt"]; problems != "" {
		t.Errorf("problems: %s", problems)
	}
}

// unpack returns the files of an archive by their names in its folder.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]string{}
	for r := tar.NewReader(packed); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		members[name] = string(content)
	}
}
