package cloudinit

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// Config is what a guest shall find at its first boot. Its zero value lacks an
// instance ID and a hostname, which are required.
type Config struct {
	// InstanceID identifies this incarnation of the guest: cloud-init does its
	// once-per-instance work when it differs from the last boot's.
	InstanceID string
	// Hostname is a DNS label or a fully qualified name (RFC 1123).
	Hostname string
	// SSHKeys are authorized for the image's default user, one
	// authorized_keys line each.
	SSHKeys []string
	// MetaData replaces or adds top-level keys of the generated meta-data, which are
	// named as NoCloud has them.
	MetaData map[string]any
	// UserData is what the pod's author supplies.
	UserData UserData
	// Network is nil when the guest is to use DHCP on all its cards.
	Network *NetworkConfig
	// NetworkV1 writes it as NoCloud's network-config version 1, for guests that do not
	// know version 2.
	NetworkV1 bool
	// WriteFiles are created at the first boot, before any command runs.
	WriteFiles []WriteFile
	// Mounts are entries of the guest's fstab.
	Mounts []Mount
	// BootCmd runs early at each boot, RunCmd late at the first boot only.
	BootCmd, RunCmd []Command
	// Env is written to EnvironmentFile and set for Process. Names that no shell
	// can set appear in the file as comments.
	Env []EnvVar
	// Process is started at the end of each boot; nil starts nothing.
	Process *Process
}

// UserData is supplied by the pod's author. At most one of its fields is set.
type UserData struct {
	// Document is a cloud-config; what Ambipod generates is merged into it.
	Document Document
	// Raw is handed to the guest byte by byte, whatever its format. What Ambipod
	// generates then travels as vendor-data.
	Raw []byte
}

// WriteFile is a file for the guest.
type WriteFile struct {
	Path    string // absolute
	Content []byte
	Mode    fs.FileMode // permission bits; 0 means 0644
	Owner   string      // user or user:group; "" means root
}

// Mount is a file system that the guest mounts at each boot.
type Mount struct {
	Device  string // a path, LABEL=…, UUID=…, or a virtiofs tag
	Dir     string // absolute; created when absent
	Type    string // "" means auto
	Options string // comma-separated; "" means defaults,nofail
}

// Command is executed as it is, without a shell.
type Command []string

// EnvVar is an environment variable of the pod's container.
type EnvVar struct{ Name, Value string }

// Process is the command of the pod's container.
type Process struct {
	Args []string // the program and its arguments
	Dir  string   // absolute working directory; "" means /
}

var (
	hostnamePattern   = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	instanceIDPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:-]{0,254}$`)
	ownerPattern      = regexp.MustCompile(`^[a-z_][a-z0-9_-]*(:[a-z_][a-z0-9_-]*)?$`)
	envNamePattern    = regexp.MustCompile(`^[ -<>-~]+$`) // what Kubernetes allows: printable, no '='
	shellNamePattern  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// maxHostname is the limit of a name in the DNS, in bytes (RFC 1035, 2.3.4).
const maxHostname = 253

func invalid(format string, args ...any) error {
	return fmt.Errorf("cloud-init: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// validate refuses what the guest would misread or fail on at boot, where nobody
// looks.
func (c Config) validate() error {
	if !instanceIDPattern.MatchString(c.InstanceID) {
		return invalid("instance ID %q has characters other than letters, digits, '.', '_', ':' and '-', or is too long", c.InstanceID)
	}
	if len(c.Hostname) > maxHostname || !hostnamePattern.MatchString(c.Hostname) {
		return invalid("hostname %q is not a DNS name", c.Hostname)
	}
	for _, key := range c.SSHKeys {
		if strings.ContainsAny(key, "\r\n\x00") || len(strings.Fields(key)) < 2 {
			return invalid("SSH key %.40q is not one line of an authorized_keys file", key)
		}
	}
	if len(c.UserData.Raw) > 0 && !c.UserData.Document.IsEmpty() {
		return invalid("raw user-data and a cloud-config document exclude each other")
	}
	if err := c.validateFiles(); err != nil {
		return err
	}
	if err := c.validateProcess(); err != nil {
		return err
	}
	return c.Network.validate()
}

func (c Config) validateFiles() error {
	for _, f := range c.WriteFiles {
		if err := checkPath(f.Path); err != nil {
			return err
		}
		if f.Mode&^fs.ModePerm != 0 {
			return invalid("file %s: mode %v is not permission bits", f.Path, f.Mode)
		}
		if f.Owner != "" && !ownerPattern.MatchString(f.Owner) {
			return invalid("file %s: owner %q is not user or user:group", f.Path, f.Owner)
		}
	}
	for _, m := range c.Mounts {
		if err := checkPath(m.Dir); err != nil {
			return err
		}
		if m.Device == "" {
			return invalid("mount on %s names no device", m.Dir)
		}
	}
	return nil
}

func (c Config) validateProcess() error {
	for _, v := range c.Env {
		if !envNamePattern.MatchString(v.Name) {
			return invalid("environment variable %q has a name that is empty or has odd characters", v.Name)
		}
		if strings.Contains(v.Value, "\x00") {
			return invalid("environment variable %s contains a zero byte", v.Name)
		}
	}
	for _, command := range append(append([]Command{}, c.BootCmd...), c.RunCmd...) {
		if len(command) == 0 {
			return invalid("a command is empty")
		}
	}
	if c.Process == nil {
		return nil
	}
	if len(c.Process.Args) == 0 || c.Process.Args[0] == "" {
		return invalid("the container's command is empty")
	}
	if strings.Contains(strings.Join(c.Process.Args, ""), "\x00") {
		return invalid("the container's command contains a zero byte")
	}
	if c.Process.Dir != "" {
		return checkPath(c.Process.Dir)
	}
	return nil
}

func checkPath(name string) error {
	if !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsAny(name, "\x00\n") {
		return invalid("path %q is not absolute and clean", name)
	}
	return nil
}
