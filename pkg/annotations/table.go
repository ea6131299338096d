package annotations

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

//go:generate go test -run TestDocumentation -update .

const (
	targetRuntime = Domain + "target-runtime"
	busSCSI       = "scsi"
	busVirtio     = "virtio"
	busSATA       = "sata"

	// maxVCPUs is what the machine type pc takes in QEMU.
	maxVCPUs = 255
)

// Table is every annotation that Ambipod knows, in the order of the documentation.
var Table = slices.Concat(general, machine)

var general = []Annotation{
	{
		Name: targetRuntime, Alias: "kubernetes.io/target-runtime",
		Allowed: "`vm` (and, under the alias, `vm.ambipod.io` and `virtlet.cloud`)", Default: "the pod is a container pod",
		Doc: "Makes the pod a VM pod. A RuntimeClass with the handler `vm` does the same and needs no annotation. " +
			"criproxy routes by it.",
		parse: oneOf(func(s *Settings) *string { return &s.TargetRuntime }, "vm", "vm.ambipod.io", "virtlet.cloud"),
	},
	{
		Name: Domain + "vcpu-count", Alias: "VirtletVCPUCount",
		Allowed: "a whole number from 1 to 255", Default: "the container's CPU limit, rounded up; 1 without a limit",
		Doc: "Number of virtual CPUs. The CPU limit still bounds how much time they get together.",
		parse: func(s *Settings, value string) (err error) {
			s.VCPUs, err = wholeNumber(value, 1, maxVCPUs)
			return err
		},
	},
	{
		Name: Domain + "root-volume-size", Alias: "VirtletRootVolumeSize",
		Allowed: "a Kubernetes quantity of at least the image's virtual size, such as `10Gi`", Default: "the image's virtual size",
		Doc:   "Size of the root disk. The guest grows its file system itself, as cloud-init's growpart does.",
		parse: func(s *Settings, value string) (err error) { s.RootSize, err = amount(value); return err },
	},
	{
		Name:    Domain + "replace-root",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc: "Whether a persistent root disk (`volumeDevices` with the `devicePath` `/`) that was made from another image than the pod's " +
			"is overwritten with the new image, so that all on it is lost. Otherwise such a pod is refused.",
		parse: truth(func(s *Settings) *bool { return &s.ReplaceRoot }),
	},
	{
		Name: Domain + "disk-bus", Alias: "VirtletDiskDriver",
		Allowed: "`scsi`, `virtio` or `sata`", Default: "`scsi`",
		Doc: "How the guest sees its disks: virtio-scsi (`/dev/sd*`), virtio-blk (`/dev/vd*`) or, for guests without virtio such as a Windows " +
			"that has just been installed, SATA, which holds four disks beside the root disk.",
		parse: oneOf(func(s *Settings) *string { return &s.DiskBus }, busSCSI, busVirtio, busSATA),
	},
	{
		Name:    Domain + "disks",
		Allowed: diskForms, Default: "no others than the pod's volumes",
		Doc:   diskDoc,
		parse: func(s *Settings, value string) (err error) { s.Disks, err = parseDisks(value); return err },
	},
	{
		Name:    Domain + "folders",
		Allowed: "`virtiofs` or `9p`", Default: "`virtiofs`; `9p` on a node without virtiofsd",
		Doc: "How folders reach the guest. By `9p`, Virtlet's only way, QEMU itself serves them: as its own unprivileged user, who must be able to use " +
			"the folder and owns all that the guest makes in it. The guest's kernel needs 9p over virtio, which those made for clouds lack.",
		parse: oneOf(func(s *Settings) *string { return &s.Folders }, "virtiofs", "9p"),
	},
	{
		Name: Domain + "system-uuid", Alias: "VirtletSystemUUID",
		Allowed: "a UUID", Default: "a random one",
		Doc: "UUID that the guest reads from its SMBIOS tables.",
		parse: func(s *Settings, value string) error {
			id, err := uuid.Parse(value)
			s.SystemUUID = id.String()
			return plain(err, "is no UUID")
		},
	},
	{
		Name: Domain + "ssh-keys", Alias: "VirtletSSHKeys",
		Allowed: "public keys as in `authorized_keys`, one a line", Default: "none",
		Doc: "SSH keys that cloud-init gives to the image's default user.",
		parse: func(s *Settings, value string) error {
			for line := range strings.Lines(value) {
				if line = strings.TrimSpace(line); line == "" {
					continue
				}
				if len(strings.Fields(line)) < 2 || strings.ContainsAny(line, "\r\x00") { // a kind and a key
					return errors.New("has a line that is no public key")
				}
				s.SSHKeys = append(s.SSHKeys, line)
			}
			return nil
		},
	},
	{
		Name: Domain + "user-data", Alias: "VirtletCloudInitUserData",
		Allowed: "a YAML mapping", Default: "none",
		Doc:   "cloud-init user-data (`#cloud-config`).",
		parse: func(s *Settings, value string) error { s.UserData = value; return yamlMapping(value) },
	},
	{
		Name: Domain + "user-data-script", Alias: "VirtletCloudInitUserDataScript",
		Allowed: "a text that begins with `#!`, or with Virtlet's placeholder", Default: "none",
		Doc: "cloud-init user-data as a script that runs at the guest's first boot. Excludes `user-data`. The pod's volumes are mounted by then, " +
			"so Virtlet's placeholder `@virtlet-mount-script@` becomes a command that does nothing.",
		parse: func(s *Settings, value string) error {
			s.UserScript = value
			if !strings.HasPrefix(value, "#!") && !strings.HasPrefix(value, MountScript) {
				return errors.New("does not begin with #! as a script does")
			}
			return nil
		},
	},
	{
		Name: Domain + "user-data-source", Alias: "VirtletCloudInitUserDataSource",
		Allowed: sourceForms, Default: "none",
		Doc: "cloud-init user-data from a ConfigMap or Secret. Each entry is a key of the `#cloud-config` mapping and its value in YAML; " +
			"`user-data` is merged over it." + sourceRights,
		parse: func(s *Settings, value string) (err error) {
			s.UserDataSource, err = parseSource(value, false)
			return err
		},
	},
	{
		Name: Domain + "user-data-source-key", Alias: "VirtletCloudInitUserDataSourceKey",
		Allowed: "the name of an entry", Default: "all entries make up the user-data",
		Doc:   "The entry of `user-data-source` that is the whole user-data, of any format that cloud-init knows.",
		parse: func(s *Settings, value string) error { s.UserDataKey = value; return notEmpty(value) },
	},
	{
		Name: Domain + "user-data-source-encoding", Alias: "VirtletCloudInitUserDataSourceEncoding",
		Allowed: "`plain` or `base64`", Default: "`plain`",
		Doc: "How the entry that `user-data-source-key` names is encoded.",
		parse: func(s *Settings, value string) error {
			s.UserDataBase64 = value == "base64"
			return among(value, "plain", "base64")
		},
	},
	{
		Name: Domain + "user-data-overwrite", Alias: "VirtletCloudInitUserDataOverwrite",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc:   "`user-data` replaces what `user-data-source` says, and `ssh-keys` what `ssh-key-source` says, instead of adding to it.",
		parse: truth(func(s *Settings) *bool { return &s.UserDataOverwrite }),
	},
	{
		Name: Domain + "ssh-key-source", Alias: "VirtletSSHKeySource",
		Allowed: sourceForms + "; `/KEY` may follow a NAME, and the path may be that of a file", Default: "none",
		Doc: "SSH keys from a ConfigMap or Secret, from its entry `authorized_keys` if no other is named; `ssh-keys` come after them." + sourceRights,
		parse: func(s *Settings, value string) (err error) {
			s.SSHKeySource, err = parseSource(value, true)
			return err
		},
	},
	{
		Name: Domain + "files-from-data-source", Alias: "VirtletFilesFromDataSource",
		Allowed: sourceForms, Default: "none",
		Doc: "Files for the guest, written by cloud-init at its first boot. For each file there is an entry `X` with its content, `X_path` with " +
			"its absolute path in the guest and, unless the content is in base64, `X_encoding` with the word `plain`." + sourceRights,
		parse: func(s *Settings, value string) (err error) {
			s.FilesSource, err = parseSource(value, false)
			return err
		},
	},
	{
		Name:    Domain + "config-volumes",
		Allowed: "`copy` or `mount`", Default: "`copy`",
		Doc: "How ConfigMap, Secret, projected and downward API volumes reach the guest: copied at its first boot, or mounted like folders " +
			"of the node, so that changes of them show in the running guest.",
		parse: func(s *Settings, value string) error {
			s.MountConfig = value == "mount"
			return among(value, "copy", "mount")
		},
	},
	{
		Name: Domain + "chown-mounts", Alias: "VirtletChown9pfsMounts",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc: "Accepted for Virtlet's manifests and without effect: folders reach the guest by virtiofs with the users and groups that they " +
			"have on the node, so nothing has to be given to QEMU's user. Where they come by 9p, see `folders`, give them to that user yourself.",
		parse: truth(func(*Settings) *bool { return new(bool) }),
	},
	{
		Name:    Domain + "instance-id",
		Allowed: "up to 255 letters, digits and `._:-`", Default: "`pod-` and the pod's UID",
		Doc: "By what cloud-init tells instances apart: it does its work of the first boot when this differs from the last boot's. With the default " +
			"that is so for each new pod; give a name that stays to keep a persistent root disk as it was left.",
		parse: func(s *Settings, value string) error {
			s.InstanceID = value
			if !instanceID.MatchString(value) {
				return errors.New("is no instance ID")
			}
			return nil
		},
	},
	{
		Name:    Domain + "network-config",
		Allowed: "`v1` or `v2`", Default: "`v2`",
		Doc: "Version of the network configuration for cloud-init's NoCloud. Version 1 is for guests with a cloud-init before 18.1 and cannot " +
			"say the metrics of routes. A config drive has a format of its own.",
		parse: func(s *Settings, value string) error {
			s.NetworkConfigV1 = value == "v1"
			return among(value, "v1", "v2")
		},
	},
	{
		Name: Domain + "meta-data", Alias: "VirtletCloudInitMetaData",
		Allowed: "a YAML or JSON mapping", Default: "none",
		Doc:   "cloud-init meta-data; its keys override generated ones such as `local-hostname` and `instance-id`.",
		parse: func(s *Settings, value string) error { s.MetaData = value; return yamlMapping(value) },
	},
	{
		Name: Domain + "force-dhcp", Alias: "VirtletForceDHCPNetworkConfig",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc:   "Leaves the network configuration out of the cloud-init disk, so that the guest asks for it by DHCP.",
		parse: truth(func(s *Settings) *bool { return &s.ForceDHCP }),
	},
	{
		Name: Domain + "cloud-init-datasource", Alias: "VirtletCloudInitImageType",
		Allowed: "`nocloud` or `configdrive`", Default: "`nocloud`",
		Doc: "What the guest's cloud-init finds: an image labelled `cidata` (NoCloud), or one labelled `config-2` (OpenStack's config drive), " +
			"which cloudbase-init of Windows guests reads.",
		parse: oneOf(func(s *Settings) *string { return &s.Datasource }, "nocloud", "configdrive"),
	},
	{
		Name: Domain + "cpu-model", Alias: "VirtletCPUModel",
		Allowed: "`host-model`, `host-passthrough`, `maximum` or a name from libvirt's CPU map such as `Skylake-Server`; the first two need KVM",
		Default: "`host-passthrough` with KVM, `Nehalem` under software emulation",
		Doc:     "The processor that the guest sees.",
		parse: func(s *Settings, value string) error {
			s.CPUModel = value
			if !cpuModel.MatchString(value) {
				return errors.New("is no such name")
			}
			return nil
		},
	},
	{
		Name: Domain + "libvirt-cpu-setting", Alias: "VirtletLibvirtCPUSetting",
		Allowed: "a YAML mapping with `mode`, `match`, `check`, `migratable`, `vendor`, `model` (`value`, `fallback`) and `features` (`policy`, `name`)",
		Default: "as `cpu-model` says",
		Doc: "The processor that the guest sees, in the terms of libvirt's `<cpu>` element. Its topology follows from the number of virtual CPUs. " +
			"It counts in place of `cpu-model`.",
		parse: func(s *Settings, value string) (err error) { s.CPU, err = parseCPU(value); return err },
	},
	{
		Name:    Domain + "screen",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc:   "Gives the VM a graphics card, whose picture VNC serves on a unix socket of the node and nowhere else.",
		parse: truth(func(s *Settings) *bool { return &s.Screen }),
	},
	{
		Name: Domain + "ingress-bandwidth", Alias: "kubernetes.io/ingress-bandwidth",
		Allowed: "a Kubernetes quantity of bits per second, such as `10M`", Default: "no limit",
		Doc:   "Most traffic towards the guest, beyond bursts of up to 256 MiB; needs the CNI plugin `bandwidth` in the node's configuration, without which nothing is limited.",
		parse: func(s *Settings, value string) (err error) { s.IngressBandwidth, err = amount(value); return err },
	},
	{
		Name: Domain + "egress-bandwidth", Alias: "kubernetes.io/egress-bandwidth",
		Allowed: "a Kubernetes quantity of bits per second, such as `10M`", Default: "no limit",
		Doc:   "Most traffic from the guest, beyond bursts of up to 256 MiB; needs the CNI plugin `bandwidth` in the node's configuration, without which nothing is limited.",
		parse: func(s *Settings, value string) (err error) { s.EgressBandwidth, err = amount(value); return err },
	},
	{
		Name:    Domain + "allow-spoofing",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc:   "Lets the guest send from other MAC and IP addresses than its own, as a router must.",
		parse: truth(func(s *Settings) *bool { return &s.AllowSpoofing }),
	},
}

// oneOf stores a value that must be one of a set.
func oneOf(field func(*Settings) *string, allowed ...string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		*field(s) = value
		return among(value, allowed...)
	}
}

func among(value string, allowed ...string) error {
	if !slices.Contains(allowed, value) {
		return errors.New("is none of the known ones")
	}
	return nil
}

func truth(field func(*Settings) *bool) func(*Settings, string) error {
	return func(s *Settings, value string) (err error) {
		*field(s), err = strconv.ParseBool(value)
		return plain(err, "is neither true nor false")
	}
}

func notEmpty(value string) error {
	if value == "" {
		return errors.New("is empty")
	}
	return nil
}

func wholeNumber(value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0, errors.New("is no whole number")
	}
	if n < least || n > most {
		return 0, fmt.Errorf("is not between %d and %d", least, most)
	}
	return n, nil
}

func amount(value string) (int64, error) {
	quantity, err := resource.ParseQuantity(value)
	if err != nil {
		return 0, errors.New("is no Kubernetes quantity")
	}
	if quantity.Sign() <= 0 {
		return 0, errors.New("is not more than zero")
	}
	return quantity.Value(), nil
}

func yamlMapping(value string) error {
	var mapping map[string]any
	if err := yaml.Unmarshal([]byte(value), &mapping); err != nil {
		return fmt.Errorf("is no YAML mapping (%w)", err)
	}
	return nil
}

// plain replaces a library's error by words that fit into our sentence.
func plain(err error, text string) error {
	if err == nil {
		return nil
	}
	return errors.New(text)
}
