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

	// maxVCPUs is what the machine type pc takes in QEMU.
	maxVCPUs = 255
)

// Table is every annotation that Ambipod knows, in the order of the documentation.
var Table = []Annotation{
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
		Name: Domain + "disk-bus", Alias: "VirtletDiskDriver",
		Allowed: "`scsi` or `virtio`", Default: "`scsi`",
		Doc:   "How the guest sees its disks: virtio-scsi (`/dev/sd*`) or virtio-blk (`/dev/vd*`).",
		parse: oneOf(func(s *Settings) *string { return &s.DiskBus }, busSCSI, busVirtio),
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
				if line = strings.TrimSpace(line); line != "" {
					s.SSHKeys = append(s.SSHKeys, line)
				}
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
		Allowed: "a text that begins with `#!`", Default: "none",
		Doc: "cloud-init user-data as a script that runs at the guest's first boot. Excludes `user-data`.",
		parse: func(s *Settings, value string) error {
			s.UserScript = value
			if !strings.HasPrefix(value, "#!") {
				return errors.New("does not begin with #! as a script does")
			}
			return nil
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
		Doc: "Leaves the network configuration out of the cloud-init disk, so that the guest asks for it by DHCP.",
		parse: func(s *Settings, value string) (err error) {
			s.ForceDHCP, err = strconv.ParseBool(value)
			return plain(err, "is neither true nor false")
		},
	},
	{
		Name: Domain + "ingress-bandwidth", Alias: "kubernetes.io/ingress-bandwidth",
		Allowed: "a Kubernetes quantity of bits per second, such as `10M`", Default: "no limit",
		Doc:   "Most traffic towards the guest; needs the CNI plugin `bandwidth` in the node's configuration.",
		parse: func(s *Settings, value string) (err error) { s.IngressBandwidth, err = amount(value); return err },
	},
	{
		Name: Domain + "egress-bandwidth", Alias: "kubernetes.io/egress-bandwidth",
		Allowed: "a Kubernetes quantity of bits per second, such as `10M`", Default: "no limit",
		Doc:   "Most traffic from the guest; needs the CNI plugin `bandwidth` in the node's configuration.",
		parse: func(s *Settings, value string) (err error) { s.EgressBandwidth, err = amount(value); return err },
	},
	{
		Name:    Domain + "allow-spoofing",
		Allowed: "`true` or `false`", Default: "`false`",
		Doc: "Lets the guest send from other MAC and IP addresses than its own, as a router must.",
		parse: func(s *Settings, value string) (err error) {
			s.AllowSpoofing, err = strconv.ParseBool(value)
			return plain(err, "is neither true nor false")
		},
	},
	{
		Name: Domain + "cloud-init-datasource", Alias: "VirtletCloudInitImageType",
		Allowed: "`nocloud`", Default: "`nocloud`",
		Doc:   "The cloud-init datasource of the configuration disk.",
		parse: oneOf(func(*Settings) *string { return new(string) }, "nocloud"),
	},
}

// oneOf stores a value that must be one of a set.
func oneOf(field func(*Settings) *string, allowed ...string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if !slices.Contains(allowed, value) {
			return errors.New("is none of the known ones")
		}
		*field(s) = value
		return nil
	}
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
