package criserver

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// documentsOf renders what a pod with the annotations tells its guest.
func documentsOf(t *testing.T, uid string, values map[string]string, mounts ...*runtimeapi.Mount) cloudinit.Files {
	t.Helper()
	result, err := json.Marshal(network.Result{
		Interfaces: []network.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1450, Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")}}},
		Routes:     []network.Route{{Interface: "eth0", Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.2.1")}},
		DNS:        network.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5", "edns0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	box := sandbox{metadata.Sandbox{Network: result}, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "db-0", Namespace: "prod", Uid: uid},
	}}
	vm := &runtimeapi.ContainerConfig{
		Command: []string{"/usr/bin/serve"}, Args: []string{"--greeting", "it's me"}, WorkingDir: "/srv",
		Envs: []*runtimeapi.KeyValue{{Key: "COLOUR", Value: []byte("light blue")}},
	}
	config, err := cloudInitConfig(box, vm, planWith(t, values), mounted(mounts...))
	if err != nil {
		t.Fatal(err)
	}
	render := cloudinit.NoCloud
	if values["cloud-init-datasource"] == "configdrive" {
		render = cloudinit.ConfigDrive
	}
	files, err := render(config)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestGuestDocumentsGolden: what annotations, environment and command come to, in the
// files that the guest reads.
func TestGuestDocumentsGolden(t *testing.T) {
	t.Parallel()
	data := objectVolume(t, "configmap", "data", map[string]string{"packages": "- nginx\n", "timezone": "UTC\n"})
	for name, c := range map[string]struct {
		values map[string]string
		mounts []*runtimeapi.Mount
	}{
		"plain": {},
		"merged": {map[string]string{
			"user-data-source": "configmap/data", "user-data": "packages: [vim]\nruncmd: [echo hello]\n", "ssh-keys": "ssh-ed25519 A a",
		}, []*runtimeapi.Mount{data}},
		"overwritten": {map[string]string{
			"user-data-source": "configmap/data", "user-data": "packages: [vim]", "user-data-overwrite": "true",
		}, []*runtimeapi.Mount{data}},
		"script":      {map[string]string{"user-data-script": "#!/bin/sh\necho from a script\n"}, nil},
		"meta-data":   {map[string]string{"meta-data": "local-hostname: other\nregion: north", "instance-id": "db"}, nil},
		"network-v1":  {map[string]string{"network-config": "v1"}, nil},
		"dhcp":        {map[string]string{"force-dhcp": "true"}, nil},
		"configdrive": {map[string]string{"cloud-init-datasource": "configdrive", "ssh-keys": "ssh-ed25519 A a", "instance-id": "db"}, nil},
	} {
		compareGolden(t, filepath.Join("testdata", "guest", name), documentsOf(t, "7e1c", c.values, c.mounts...))
	}
}

// compareGolden compares all files of a folder.
func compareGolden(t *testing.T, dir string, files cloudinit.Files) {
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
	want, got := map[string]string{}, map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		want[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		got[name] = string(content)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s differs (-golden +built); run with -update if that is meant:\n%s", dir, diff)
	}
}

// TestInstanceID: a pod that is created anew is another instance, unless it says that
// it is the same.
func TestInstanceID(t *testing.T) {
	t.Parallel()
	id := func(uid string, values map[string]string) string {
		var data struct {
			ID string `json:"instance-id"`
		}
		if err := json.Unmarshal(documentsOf(t, uid, values)["meta-data"], &data); err != nil {
			t.Fatal(err)
		}
		return data.ID
	}
	if a, b := id("1", nil), id("2", nil); a == b || a != id("1", nil) {
		t.Errorf("pods with the UIDs 1 and 2 are the instances %s and %s", a, b)
	}
	named := map[string]string{"instance-id": "db"}
	if a, b := id("1", named), id("2", named); a != "db" || b != "db" {
		t.Errorf("pods that name their instance are %s and %s", a, b)
	}
}
