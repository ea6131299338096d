package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// metaData is the NoCloud document about the instance.
type metaData struct {
	InstanceID    string  `yaml:"instance-id"`
	LocalHostname string  `yaml:"local-hostname"`
	PublicKeys    keyList `yaml:"public-keys"`
}

// cloudConfig is the part of #cloud-config that the tiny guest understands.
type cloudConfig struct {
	Hostname          string      `yaml:"hostname"`
	FQDN              string      `yaml:"fqdn"`
	SSHAuthorizedKeys keyList     `yaml:"ssh_authorized_keys"`
	WriteFiles        []fileEntry `yaml:"write_files"`
	Mounts            [][]string  `yaml:"mounts"`
	BootCmd           []command   `yaml:"bootcmd"`
	RunCmd            []command   `yaml:"runcmd"`
	ManageResolvConf  bool        `yaml:"manage_resolv_conf"`
	ResolvConf        *resolver   `yaml:"resolv_conf"`

	// Rest collects the keys that are not understood.
	Rest map[string]any `yaml:",inline"`
}

// resolver is what resolv.conf shall say; an option that is true has no value.
type resolver struct {
	Servers []string       `yaml:"nameservers"`
	Search  []string       `yaml:"searchdomains"`
	Options map[string]any `yaml:"options"`
}

// complete takes over what a second document says and this one does not.
func (c *cloudConfig) complete(other cloudConfig) {
	c.Hostname, c.FQDN = cmp.Or(c.Hostname, other.Hostname), cmp.Or(c.FQDN, other.FQDN)
	c.SSHAuthorizedKeys = firstOf(c.SSHAuthorizedKeys, other.SSHAuthorizedKeys)
	c.WriteFiles = firstOf(c.WriteFiles, other.WriteFiles)
	c.Mounts = firstOf(c.Mounts, other.Mounts)
	c.BootCmd = firstOf(c.BootCmd, other.BootCmd)
	c.RunCmd = firstOf(c.RunCmd, other.RunCmd)
	if c.ResolvConf == nil {
		c.ManageResolvConf, c.ResolvConf = other.ManageResolvConf, other.ResolvConf
	}
}

func firstOf[S ~[]E, E any](first, second S) S {
	if len(first) > 0 {
		return first
	}
	return second
}

// userData is either a script or a cloud-config.
type userData struct {
	script []byte
	config cloudConfig
}

// keyList holds SSH public keys. The meta-data documents allow a list, a single
// string, and maps whose values are keys or maps with an openssh-key.
type keyList []string

// UnmarshalYAML flattens all allowed forms into one list.
func (k *keyList) UnmarshalYAML(node *yaml.Node) error {
	switch node.Kind {
	case yaml.ScalarNode:
		if node.Tag != "!!null" {
			*k = append(*k, strings.TrimSpace(node.Value))
		}
		return nil
	case yaml.SequenceNode:
		return k.addAll(node.Content)
	case yaml.MappingNode:
		var values []*yaml.Node
		for i := 1; i < len(node.Content); i += 2 {
			values = append(values, node.Content[i])
		}
		return k.addAll(values)
	default:
		return fmt.Errorf("line %d: not a list of SSH keys", node.Line)
	}
}

func (k *keyList) addAll(nodes []*yaml.Node) error {
	for _, node := range nodes {
		var more keyList
		if err := node.Decode(&more); err != nil {
			return err
		}
		*k = append(*k, more...)
	}
	return nil
}

// command is what to execute; a string in the document means a shell line.
type command []string

// UnmarshalYAML accepts a string or a list of words.
func (c *command) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*c = command{"/bin/sh", "-c", node.Value}
		return nil
	}
	var words []string
	if err := node.Decode(&words); err != nil {
		return err
	}
	*c = words
	return nil
}

// fileEntry is one element of write_files.
type fileEntry struct {
	Path        string `yaml:"path"`
	Content     string `yaml:"content"`
	Encoding    string `yaml:"encoding"`
	Permissions mode   `yaml:"permissions"`
	Owner       string `yaml:"owner"`
	Append      bool   `yaml:"append"`
	Defer       bool   `yaml:"defer"`
}

// mode is a file mode written as octal digits, quoted or not.
type mode uint32

// UnmarshalYAML reads the digits as they stand: 0644 and '0644' mean the same.
func (m *mode) UnmarshalYAML(node *yaml.Node) error {
	digits := strings.TrimPrefix(node.Value, "0o")
	value, err := strconv.ParseUint(digits, 8, 12)
	if err != nil {
		return fmt.Errorf("line %d: permissions %q are not octal digits", node.Line, node.Value)
	}
	*m = mode(value)
	return nil
}

// data decodes the content of a file entry.
func (f fileEntry) data() ([]byte, error) {
	data := []byte(f.Content)
	encoding := strings.ToLower(f.Encoding)
	encoding = strings.ReplaceAll(encoding, "base64", "b64")
	encoding = strings.ReplaceAll(encoding, "gzip", "gz")
	switch encoding {
	case "", "text/plain", "b64", "gz", "gz+b64":
	default:
		return nil, fmt.Errorf("encoding %q is unknown", f.Encoding)
	}
	var err error
	if strings.Contains(encoding, "b64") {
		text := strings.Join(strings.Fields(f.Content), "")
		if data, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, fmt.Errorf("content: %w", err)
		}
	}
	if strings.Contains(encoding, "gz") {
		return gunzip(data)
	}
	return data, nil
}

func gunzip(data []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(zr, maxSeedFile+1))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	if len(plain) > maxSeedFile {
		return nil, fmt.Errorf("gzip: unpacks to more than %d bytes", maxSeedFile)
	}
	return plain, nil
}

func parseMetaData(data []byte) (metaData, error) {
	var m metaData
	if err := yaml.Unmarshal(data, &m); err != nil {
		return metaData{}, fmt.Errorf("meta-data: %w", err)
	}
	return m, nil
}

func parseUserData(data []byte) (userData, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		plain, err := gunzip(data)
		if err != nil {
			return userData{}, fmt.Errorf("user-data: %w", err)
		}
		data = plain
	}
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return userData{}, nil
	case bytes.HasPrefix(data, []byte("#!")):
		return userData{script: data}, nil
	case bytes.HasPrefix(data, []byte("#cloud-config\n")), bytes.HasPrefix(data, []byte("#cloud-config\r\n")):
		var c cloudConfig
		if err := yaml.Unmarshal(data, &c); err != nil {
			return userData{}, fmt.Errorf("user-data: %w", err)
		}
		return userData{config: c}, nil
	default:
		first, _, _ := bytes.Cut(data, []byte("\n"))
		return userData{}, fmt.Errorf("user-data starts with %.40q, which is neither #cloud-config nor a script", first)
	}
}

// unknownKeys lists what the guest will not do.
func (c cloudConfig) unknownKeys() []string {
	var keys []string
	for key := range c.Rest {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
