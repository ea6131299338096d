package criserver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/cloudinit"
)

// objectVolume lays a volume out where kubelet has those of ConfigMaps and Secrets.
func objectVolume(t *testing.T, kind, name string, entries map[string]string) *runtimeapi.Mount {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes", "kubernetes.io~"+kind)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kubeletVolume(t, entries), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	return &runtimeapi.Mount{ContainerPath: "/etc/" + name, HostPath: filepath.Join(dir, name)}
}

// mounted are sources without an API server.
func mounted(mounts ...*runtimeapi.Mount) sources {
	return sources{mounts, func(kind, name string) (map[string][]byte, error) {
		return nil, fmt.Errorf("%s %s was asked for: %w", kind, name, errdefs.ErrInvalidArgument)
	}}
}

func mustParse(t *testing.T, pod map[string]string) annotations.Settings {
	t.Helper()
	settings, err := annotations.Parse(pod)
	if err != nil {
		t.Fatal(err)
	}
	return settings
}

// userDataOf renders what the guest gets, without what Ambipod adds.
func userDataOf(t *testing.T, data cloudinit.UserData) string {
	t.Helper()
	files, err := cloudinit.NoCloud(cloudinit.Config{InstanceID: "i", Hostname: "h", UserData: data})
	if err != nil {
		t.Fatal(err)
	}
	return string(files["user-data"])
}

func TestUserDataFromVolumes(t *testing.T) {
	mounts := []*runtimeapi.Mount{
		objectVolume(t, "secret", "data", map[string]string{"packages": "- secret\n"}),
		objectVolume(t, "configmap", "data", map[string]string{"packages": "- nginx\n", "timezone": "UTC\n", "encoded": "IyEvYmlu\nL3No\n"}),
	}
	for name, test := range map[string]struct {
		pod  map[string]string
		want string
	}{
		"entries":           {map[string]string{"VirtletCloudInitUserDataSource": "secret/data"}, "#cloud-config\npackages:\n  - secret\n"},
		"path in the guest": {map[string]string{"VirtletCloudInitUserDataSource": "/etc/data"}, "#cloud-config\npackages:\n  - secret\n"},
		"one entry, decoded": {map[string]string{
			"VirtletCloudInitUserDataSource": "configmap/data", "VirtletCloudInitUserDataSourceKey": "encoded", "VirtletCloudInitUserDataSourceEncoding": "base64",
		}, "#!/bin/sh"},
		"script for Virtlet":          {map[string]string{"VirtletCloudInitUserDataScript": "#!/bin/sh\n@virtlet-mount-script@\nls /data\n"}, "#!/bin/sh\ntrue\nls /data\n"},
		"Virtlet's placeholder alone": {map[string]string{"VirtletCloudInitUserDataScript": "@virtlet-mount-script@"}, "#!/bin/sh\ntrue"},
		"annotation merged over it": {map[string]string{
			"VirtletCloudInitUserDataSource": "secret/data", "VirtletCloudInitUserData": "packages: [vim]\nuser: me\n",
		}, "#cloud-config\npackages:\n  - secret\n  - vim\nuser: me\n"},
		"annotation in its place": {map[string]string{
			"VirtletCloudInitUserDataSource": "secret/data", "VirtletCloudInitUserData": "user: me\n", "VirtletCloudInitUserDataOverwrite": "true",
		}, "#cloud-config\nuser: me\n"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := guestUserData(mounted(mounts...), mustParse(t, test.pod))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, userDataOf(t, data)); diff != "" {
				t.Errorf("user-data (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeysFromVolumes(t *testing.T) {
	const one, two, three = "ssh-ed25519 A one", "ssh-ed25519 B two", "ssh-ed25519 C three"
	mounts := []*runtimeapi.Mount{objectVolume(t, "secret", "keys", map[string]string{"authorized_keys": one + "\n\n" + two + "\n", "mine": three})}
	for name, test := range map[string]struct {
		source    string
		overwrite string
		want      []string
	}{
		"implicit key":   {"secret/keys", "false", []string{one, two, "ssh-rsa X x"}},
		"explicit key":   {"secret/keys/mine", "false", []string{three, "ssh-rsa X x"}},
		"path of a file": {"/etc/keys/mine", "false", []string{three, "ssh-rsa X x"}},
		"replaced":       {"secret/keys", "true", []string{"ssh-rsa X x"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := guestKeys(mounted(mounts...), mustParse(t, map[string]string{
				"VirtletSSHKeySource": test.source, "VirtletSSHKeys": "ssh-rsa X x", "VirtletCloudInitUserDataOverwrite": test.overwrite,
			}))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesFromVolumes(t *testing.T) {
	mounts := []*runtimeapi.Mount{objectVolume(t, "configmap", "files", map[string]string{
		"a": "plain text", "a_path": "/etc/a\n", "a_encoding": "plain", "b": "YmluYXJ5", "b_path": "/etc/b", "other": "is no file",
	})}
	got, err := filesFromSource(mounted(mounts...), annotations.Source{Kind: "configmap", Volume: "files"})
	if err != nil {
		t.Fatal(err)
	}
	want := []cloudinit.WriteFile{{Path: "/etc/a", Content: []byte("plain text")}, {Path: "/etc/b", Content: []byte("binary")}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestSourcesThatAreWrong(t *testing.T) {
	mounts := []*runtimeapi.Mount{objectVolume(t, "configmap", "data", map[string]string{
		"broken": "a: [", "x": "not base64!", "x_path": "/x", "y_path": "/y",
	})}
	for name, test := range map[string]struct {
		pod  map[string]string
		says string
	}{
		"another kind":     {map[string]string{"VirtletCloudInitUserDataSource": "secret/data"}, "user-data-source: secret data was asked for"},
		"not mounted":      {map[string]string{"VirtletSSHKeySource": "configmap/keys"}, "ssh-key-source"},
		"no such path":     {map[string]string{"VirtletFilesFromDataSource": "/etc/files"}, "mounts no volume at /etc/files"},
		"no such entry":    {map[string]string{"VirtletCloudInitUserDataSource": "configmap/data", "VirtletCloudInitUserDataSourceKey": "z"}, `no entry "z"`},
		"no YAML":          {map[string]string{"VirtletCloudInitUserDataSource": "configmap/data"}, "entry broken"},
		"no keys":          {map[string]string{"VirtletSSHKeySource": "configmap/data"}, "0 entries"},
		"content unusable": {map[string]string{"VirtletFilesFromDataSource": "configmap/data"}, "entry x"},
	} {
		t.Run(name, func(t *testing.T) {
			settings := mustParse(t, test.pod)
			_, err := guestUserData(mounted(mounts...), settings)
			if err == nil {
				_, err = guestKeys(mounted(mounts...), settings)
			}
			if err == nil {
				_, err = filesFromSource(mounted(mounts...), settings.FilesSource)
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an invalid argument that says %s", err, test.says)
			}
		})
	}
}

// TestObjectsOfTheAPIServer: what the pod does not mount is asked for, and only that.
func TestObjectsOfTheAPIServer(t *testing.T) {
	from := mounted(objectVolume(t, "configmap", "data", map[string]string{"timezone": "UTC\n"}))
	var asked []string
	from.fetch = func(kind, name string) (map[string][]byte, error) {
		asked = append(asked, kind+"/"+name)
		return map[string][]byte{"authorized_keys": []byte("ssh-rsa A a\n"), "other": []byte("ssh-rsa B b\n"), "packages": []byte("- vim\n")}, nil
	}
	settings := mustParse(t, map[string]string{"VirtletCloudInitUserDataSource": "configmap/data", "VirtletSSHKeySource": "secret/data/other"})
	data, err := guestUserData(from, settings)
	if err != nil || userDataOf(t, data) != "#cloud-config\ntimezone: UTC\n" || len(asked) != 0 {
		t.Errorf("mounted user-data is %q, %v, after asking for %v", userDataOf(t, data), err, asked)
	}
	keys, err := guestKeys(from, settings)
	if err != nil || !slices.Equal(keys, []string{"ssh-rsa B b"}) || !slices.Equal(asked, []string{"secret/data"}) {
		t.Errorf("keys %q, %v, after asking for %v", keys, err, asked)
	}
	settings = mustParse(t, map[string]string{"VirtletSSHKeySource": "secret/data/absent"})
	if _, err := guestKeys(from, settings); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `no entry "absent", it has ["authorized_keys" "other" "packages"]`) {
		t.Errorf("an entry that is not there: %v", err)
	}
}
