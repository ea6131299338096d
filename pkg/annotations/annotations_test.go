package annotations

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		pod  map[string]string
		want Settings
	}{
		{"nothing", nil, Settings{Firmware: "bios", NICModel: "virtio", DiskBus: "scsi", Datasource: "nocloud"}},
		{"annotations of others", map[string]string{"example.com/x": "y", "kubernetes.io/config.source": "file"}, Settings{Firmware: "bios", NICModel: "virtio", DiskBus: "scsi", Datasource: "nocloud"}},
		{
			"canonical names",
			map[string]string{
				Domain + "target-runtime": "vm", Domain + "vcpu-count": "2", Domain + "root-volume-size": "1Gi",
				Domain + "disk-bus": "virtio", Domain + "ssh-keys": "ssh-ed25519 A a\n\nssh-ed25519 B b\n", Domain + "force-dhcp": "true",
			},
			Settings{
				Firmware: "bios", NICModel: "virtio", TargetRuntime: "vm", VCPUs: 2, RootSize: 1 << 30, DiskBus: "virtio",
				SSHKeys: []string{"ssh-ed25519 A a", "ssh-ed25519 B b"}, ForceDHCP: true, Datasource: "nocloud",
			},
		},
		{
			"Virtlet's names",
			map[string]string{
				"kubernetes.io/target-runtime": "virtlet.cloud", "VirtletVCPUCount": "3",
				"VirtletSystemUUID": "53008994-44C0-4017-AD44-9C49758083DA", "VirtletDiskDriver": "scsi",
			},
			Settings{Firmware: "bios", NICModel: "virtio", TargetRuntime: "virtlet.cloud", VCPUs: 3, DiskBus: "scsi", Datasource: "nocloud", SystemUUID: "53008994-44c0-4017-ad44-9c49758083da"},
		},
		{
			"data from volumes",
			map[string]string{
				"VirtletCloudInitImageType": "configdrive", "VirtletCloudInitUserDataSource": "configmap/data", "VirtletCloudInitUserDataSourceKey": "script",
				"VirtletCloudInitUserDataSourceEncoding": "base64", "VirtletSSHKeySource": "secret/keys/mine", "VirtletFilesFromDataSource": "/etc/files/",
				"VirtletChown9pfsMounts": "true", Domain + "config-volumes": "mount",
			},
			Settings{
				Firmware: "bios", NICModel: "virtio", DiskBus: "scsi", Datasource: "configdrive", UserDataSource: Source{Kind: "configmap", Volume: "data"}, UserDataKey: "script",
				UserDataBase64: true, SSHKeySource: Source{Kind: "secret", Volume: "keys", Key: "mine"}, FilesSource: Source{Path: "/etc/files"}, MountConfig: true,
			},
		},
		{
			"a processor in libvirt's terms",
			map[string]string{"VirtletCPUModel": "host-model", "VirtletLibvirtCPUSetting": "mode: custom\nmodel:\n  value: core2duo\n  fallback: forbid\nfeatures:\n- policy: disable\n  name: vmx\n"},
			Settings{Firmware: "bios", NICModel: "virtio", DiskBus: "scsi", Datasource: "nocloud", CPU: &CPU{
				Mode: "custom", Model: CPUModel{Value: "core2duo", Fallback: "forbid"}, Features: []CPUFeature{{Policy: "disable", Name: "vmx"}},
			}},
		},
		{
			"another machine",
			map[string]string{
				Domain + "machine": "q35", Domain + "firmware": "uefi-secure", Domain + "tpm": "2.0", Domain + "watchdog": "reset", Domain + "clock": "localtime",
				Domain + "serial-number": "a-7", Domain + "nic-model": "e1000", Domain + "nic-queues": "1", Domain + "disk-bus": "sata",
				Domain + "instance-id": "db", Domain + "network-config": "v1",
			},
			Settings{
				Machine: "q35", Firmware: "uefi-secure", TPM: true, Watchdog: "reset", LocalTime: true, SerialNumber: "a-7", NICModel: "e1000", NICQueues: 1,
				DiskBus: "sata", Datasource: "nocloud", InstanceID: "db", NetworkConfigV1: true,
			},
		},
		{
			"disks",
			map[string]string{Domain + "disks": "- {name: scratch, size: 1Gi, fs: ext4, mountPath: /s, bus: virtio, serial: S1}\n" +
				"- {volume: cache, size: 5Mi}\n- {devicePath: /dev/x, cache: none, io: native, discard: ignore}"},
			Settings{Firmware: "bios", NICModel: "virtio", DiskBus: "scsi", Datasource: "nocloud", Disks: []Disk{
				{Name: "scratch", Size: 1 << 30, FileSystem: "ext4", MountPath: "/s", Bus: "virtio", Serial: "S1"},
				{Volume: "cache", Size: 5 << 20},
				{DevicePath: "/dev/x", Cache: "none", IO: "native", Discard: "ignore"},
			}},
		},
		{
			"both names, same value",
			map[string]string{Domain + "vcpu-count": "2", "VirtletVCPUCount": "2"},
			Settings{Firmware: "bios", NICModel: "virtio", VCPUs: 2, DiskBus: "scsi", Datasource: "nocloud"},
		},
		{
			"both spellings of the routing annotation",
			map[string]string{Domain + "target-runtime": "vm", "kubernetes.io/target-runtime": "virtlet.cloud"},
			Settings{Firmware: "bios", NICModel: "virtio", TargetRuntime: "vm", DiskBus: "scsi", Datasource: "nocloud"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.pod)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		pod   map[string]string
		words []string // each must be in the error
	}{
		{"a word for a number", map[string]string{Domain + "vcpu-count": "many"}, []string{"vcpu-count", `"many"`, "1 to 255"}},
		{"no CPU", map[string]string{Domain + "vcpu-count": "0"}, []string{"not between 1 and 255"}},
		{"too many CPUs, by alias", map[string]string{"VirtletVCPUCount": "256"}, []string{"VirtletVCPUCount", "256"}},
		{"a negative size", map[string]string{Domain + "root-volume-size": "-1Gi"}, []string{"root-volume-size", "-1Gi"}},
		{"an unknown bus", map[string]string{"VirtletDiskDriver": "ide"}, []string{"ide", "`scsi`, `virtio` or `sata`"}},
		{"a broken UUID", map[string]string{Domain + "system-uuid": "123"}, []string{"123", "UUID"}},
		{"user-data that is a list", map[string]string{Domain + "user-data": "- a\n"}, []string{"user-data", "YAML mapping"}},
		{"a script without #!", map[string]string{Domain + "user-data-script": "echo"}, []string{"#!"}},
		{"two kinds of user-data", map[string]string{Domain + "user-data": "a: b", Domain + "user-data-script": "#!/bin/sh"}, []string{"exclude"}},
		{"a source of another kind", map[string]string{"VirtletSSHKeySource": "pod/x"}, []string{"pod/x", "`configmap/NAME`"}},
		{"a source without a name", map[string]string{Domain + "user-data-source": "secret/"}, []string{"secret/"}},
		{"a key where none can be", map[string]string{Domain + "user-data-source": "secret/a/b"}, []string{"secret/a/b"}},
		{"a key without its source", map[string]string{Domain + "user-data-source-key": "a"}, []string{"user-data-source beside it"}},
		{"a topology of the pod's own", map[string]string{"VirtletLibvirtCPUSetting": "topology: {cores: 4}"}, []string{"topology", "`mode`"}},
		{"secure boot on an old machine", map[string]string{Domain + "firmware": "uefi-secure", Domain + "machine": "pc"}, []string{"machine", "q35"}},
		{"queues of an old card", map[string]string{Domain + "nic-model": "e1000", Domain + "nic-queues": "2"}, []string{"nic-queues", "e1000"}},
		{"an unknown way to choose a processor", map[string]string{"VirtletLibvirtCPUSetting": "mode: warp"}, []string{"warp", "host-model"}},
		{"a processor that cannot be", map[string]string{"VirtletLibvirtCPUSetting": "model: {value: 'a,b'}"}, []string{"a,b"}},
		{"a feature without a name", map[string]string{"VirtletLibvirtCPUSetting": "features: [{policy: force}]"}, []string{"force"}},
		{"an unknown policy", map[string]string{"VirtletLibvirtCPUSetting": "features: [{policy: hide, name: vmx}]"}, []string{"hide", "disable"}},
		{"a key without its kind", map[string]string{"VirtletSSHKeys": "AAAA"}, []string{"AAAA", "authorized_keys"}},
		{"an unknown datasource", map[string]string{"VirtletCloudInitImageType": "ec2"}, []string{"ec2", "`configdrive`"}},
		{"contradicting names", map[string]string{Domain + "vcpu-count": "1", "VirtletVCPUCount": "2"}, []string{`"1"`, `"2"`, "remove one"}},
		{"a misspelt name", map[string]string{Domain + "vcpu-cont": "1"}, []string{"vcpu-cont", "unknown"}},
		{"an unknown runtime", map[string]string{Domain + "target-runtime": "vmm"}, []string{"target-runtime", "vmm"}},
		{"a boolean of another language", map[string]string{"VirtletForceDHCPNetworkConfig": "yes"}, []string{"yes", "`true` or `false`"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.pod)
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("error is %v, want one of class invalid argument", err)
			}
			for _, word := range c.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q does not say %q", err, word)
				}
			}
		})
	}
}

func TestDisksRefused(t *testing.T) {
	for value, words := range map[string][]string{
		"name: a":                                                              {"cannot be read"},
		"- {name: a, size: 1Gi, colour: red}":                                  {"colour"},
		"- {size: 1Gi}":                                                        {"disk 1", "no name"},
		"- {name: A, size: 1Gi}":                                               {`"A"`, "lower-case"},
		"- {name: a}":                                                          {"disk a has no size"},
		"- {name: a, size: much}":                                              {"cannot be read"},
		"- {name: a, size: 1Ki}":                                               {"1Ki", "1Mi"},
		"- {name: a, size: -1Gi}":                                              {"-1Gi"},
		"- {name: a, size: 8Ei}":                                               {"8Ei"},
		"- {name: root, size: 1Gi}":                                            {"root is taken"},
		"- {name: a, size: 1Gi, serial: config}":                               {"config is taken"},
		"- {name: a, size: 1Gi, serial: 'a,b'}":                                {`"a,b"`},
		"- {name: a, volume: b, size: 1Gi}":                                    {"a name and a volume"},
		"- {name: a, size: 1Gi, mountPath: /a}":                                {"/a", "no fs"},
		"- {name: a, size: 1Gi, fs: ntfs}":                                     {`fs "ntfs"`, "ext4"},
		"- {name: a, size: 1Gi, bus: ide}":                                     {`bus "ide"`, "virtio"},
		"- {name: a, size: 1Gi, cache: writearound}":                           {`cache "writearound"`, "directsync"},
		"- {name: a, size: 1Gi, io: aio}":                                      {`io "aio"`, "native"},
		"- {name: a, size: 1Gi, io: native}":                                   {"native needs the cache"},
		"- {name: a, size: 1Gi, discard: 'on'}":                                {`discard "on"`, "unmap"},
		"- {name: a, size: 1Gi, devicePath: dev/a}":                            {`devicePath "dev/a"`},
		"- {name: a, size: 1Gi, devicePath: /}":                                {"root disk"},
		"- {name: a, size: 1Gi, fs: ext4, mountPath: /a/../b}":                 {`mountPath "/a/../b"`},
		"- {name: a, size: 1Gi, fs: ext4, mountPath: /}":                       {"root directory"},
		"- {volume: a, mountPath: /a}":                                         {"mountPath /a is for new disks"},
		"- {devicePath: /dev/a, size: 1Gi}":                                    {"/dev/a exists"},
		"- {name: a, size: 1Gi}\n- {name: a, size: 1Gi}":                       {"two disks with the name a"},
		"- {name: a, size: 1Gi, serial: s}\n- {name: b, size: 1Gi, serial: s}": {"two disks with the serial s"},
	} {
		_, err := Parse(map[string]string{Domain + "disks": value})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", value, err)
			continue
		}
		for _, word := range append(words, Domain+"disks", "allowed is a YAML list") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", value, err, word)
			}
		}
	}
}

func TestTableIsSound(t *testing.T) {
	names := map[string]bool{}
	for _, a := range Table {
		if !strings.HasPrefix(a.Name, Domain) {
			t.Errorf("%s is outside of %s", a.Name, Domain)
		}
		if a.Doc == "" || a.Allowed == "" || a.Default == "" || a.parse == nil {
			t.Errorf("row of %s is incomplete", a.Name)
		}
		for _, name := range []string{a.Name, a.Alias} {
			if name != "" && names[name] {
				t.Errorf("%s stands twice in the table", name)
			}
			names[name] = true
		}
	}
}

// TestVirtletsNamesAreKnown: a manifest written for Virtlet must not lose a setting.
func TestVirtletsNamesAreKnown(t *testing.T) {
	aliases := map[string]bool{}
	for _, a := range Table {
		aliases[a.Alias] = true
	}
	for name := range strings.FieldsSeq(`VirtletVCPUCount VirtletDiskDriver VirtletCloudInitImageType VirtletCloudInitMetaData
		VirtletCloudInitUserData VirtletCloudInitUserDataOverwrite VirtletCloudInitUserDataScript VirtletCloudInitUserDataSource
		VirtletCloudInitUserDataSourceKey VirtletCloudInitUserDataSourceEncoding VirtletSSHKeys VirtletSSHKeySource VirtletCPUModel
		VirtletLibvirtCPUSetting VirtletRootVolumeSize VirtletChown9pfsMounts VirtletFilesFromDataSource VirtletSystemUUID
		VirtletForceDHCPNetworkConfig`) {
		if !aliases[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
}
