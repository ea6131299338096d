package proxy

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

// Config is what criproxy is told by its file; DefaultConfig is what it assumes
// without one.
type Config struct {
	Listen         string // path of the socket that kubelet connects to
	StateDir       string // folder for the last known lists
	MetricsAddress string // "host:port" or "unix:/path" of the metrics; empty: none
	Backends       []BackendConfig
}

// BackendConfig describes one CRI server and what belongs to it. Exactly one is
// the default, which has neither ID prefix nor image prefixes.
type BackendConfig struct {
	Name            string // for people, in logs, metrics and errors
	Default         bool
	Socket          string // absolute path
	IDPrefix        string // of its sandbox, container and image IDs, such as "vm."
	ImagePrefixes   []string
	RuntimeHandlers []string
	Annotations     []Annotation
}

// identity is what decides whether a backend stays the same across a reload.
func (b *BackendConfig) identity() identity {
	return identity{name: b.Name, isDefault: b.Default, socket: b.Socket, idPrefix: b.IDPrefix}
}

// Annotation makes a pod annotation with one of the values a sign of a backend.
type Annotation struct {
	Key    string
	Values []string
}

// DefaultConfig is containerd as the default and vmruntime for VM pods.
func DefaultConfig() *Config {
	node := layout.Layout{State: layout.DefaultState, Run: layout.DefaultRun}
	return &Config{
		Listen:   node.ProxySocket(),
		StateDir: node.Run,
		Backends: []BackendConfig{
			{Name: "containerd", Default: true, Socket: "/run/containerd/containerd.sock"},
			{
				Name:            "vm",
				Socket:          node.Socket(),
				IDPrefix:        "vm.",
				ImagePrefixes:   []string{"vm.ambipod.io", "virtlet.cloud"},
				RuntimeHandlers: []string{"vm"},
				Annotations: []Annotation{
					{Key: "vm.ambipod.io/target-runtime", Values: []string{"vm"}},
					{Key: "kubernetes.io/target-runtime", Values: []string{"vm", "vm.ambipod.io", "virtlet.cloud"}},
				},
			},
		},
	}
}

// With returns the configuration with settings of the command line in place of
// its own; empty ones change nothing.
func (c *Config) With(listen, stateDir string) (*Config, error) {
	changed := *c
	if listen != "" {
		changed.Listen = listen
	}
	if stateDir != "" {
		changed.StateDir = stateDir
	}
	if p := changed.validate(); p != nil {
		return nil, fmt.Errorf("command line, %s: %s", p.field, p.text)
	}
	return &changed, nil
}

// problem is one mistake in a configuration: the path of the field, such as
// "backends[1].idPrefix", and a sentence without its end.
type problem struct {
	field string
	text  string
}

// validate returns the first mistake, nil if there is none.
func (c *Config) validate() *problem {
	if p := requirePath("listen", c.Listen); p != nil {
		return p
	}
	if p := requirePath("stateDir", c.StateDir); p != nil {
		return p
	}
	if p := validateAddress("metricsAddress", c.MetricsAddress); p != nil {
		return p
	}
	defaults := 0
	for _, b := range c.Backends {
		if b.Default {
			defaults++
		}
	}
	if defaults != 1 {
		return &problem{"backends", fmt.Sprintf("%d backends have default: true, exactly one must", defaults)}
	}
	taken := claims{}
	for i, b := range c.Backends {
		field := fmt.Sprintf("backends[%d]", i)
		if p := b.validate(field); p != nil {
			return p
		}
		if filepath.Clean(b.Socket) == filepath.Clean(c.Listen) {
			return &problem{field + ".socket", fmt.Sprintf("%q is where criproxy itself listens, name the runtime's", b.Socket)}
		}
		if p := taken.add(field, b); p != nil {
			return p
		}
	}
	return nil
}

func (b *BackendConfig) validate(field string) *problem {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`).MatchString(b.Name) {
		return &problem{field + ".name", fmt.Sprintf("%q is no name: use lower-case letters, digits and dashes", b.Name)}
	}
	if p := requirePath(field+".socket", b.Socket); p != nil {
		return p
	}
	for i, handler := range b.RuntimeHandlers {
		if handler == "" {
			return &problem{fmt.Sprintf("%s.runtimeHandlers[%d]", field, i), "must not be empty"}
		}
	}
	for i, a := range b.Annotations {
		at := fmt.Sprintf("%s.annotations[%d]", field, i)
		switch {
		case a.Key == "":
			return &problem{at + ".key", "must not be empty"}
		case len(a.Values) == 0:
			return &problem{at + ".values", "must not be empty"}
		}
	}
	if b.Default {
		const noPrefix = "the default backend's IDs and images have no prefix: remove it"
		switch {
		case b.IDPrefix != "":
			return &problem{field + ".idPrefix", noPrefix}
		case len(b.ImagePrefixes) > 0:
			return &problem{field + ".imagePrefixes", noPrefix}
		}
		return nil
	}
	return b.validatePrefixes(field)
}

// validatePrefixes checks what makes a non-default backend's objects its own.
func (b *BackendConfig) validatePrefixes(field string) *problem {
	// kubelet splits the names of log links at dashes, and paths at slashes.
	if !regexp.MustCompile(`^[a-z][a-z0-9]*\.$`).MatchString(b.IDPrefix) {
		return &problem{field + ".idPrefix", fmt.Sprintf(`%q is no prefix for IDs: use lower-case letters and digits and a dot at the end, such as "vm."`, b.IDPrefix)}
	}
	for i, prefix := range b.ImagePrefixes {
		if prefix == "" || strings.HasPrefix(prefix, "/") || strings.HasSuffix(prefix, "/") {
			return &problem{fmt.Sprintf("%s.imagePrefixes[%d]", field, i), fmt.Sprintf("%q is no prefix for images: give whole path segments without a slash at either end", prefix)}
		}
	}
	return nil
}

func validateAddress(field, address string) *problem {
	if address == "" {
		return nil
	}
	if path, ok := statushttp.SocketPath(address); ok {
		return requirePath(field, path)
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return &problem{field, fmt.Sprintf("%q is neither host:port nor unix:/path", address)}
	}
	return nil
}

func requirePath(field, path string) *problem {
	// A unix socket's address has room for 107 bytes.
	const longest = 107
	switch {
	case !filepath.IsAbs(path):
		return &problem{field, fmt.Sprintf("%q is no absolute path", path)}
	case len(path) > longest:
		return &problem{field, fmt.Sprintf("the path has %d bytes, at most %d fit into a socket address", len(path), longest)}
	}
	return nil
}

// claims knows which backend already has a name, prefix, handler or annotation value.
type claims map[string]string

// add claims everything that must belong to one backend only.
func (c claims) add(field string, b BackendConfig) *problem {
	claim := func(field, kind, value string) *problem {
		if owner, taken := c[kind+" "+value]; taken {
			return &problem{field, fmt.Sprintf("%s %q already belongs to backend %s", kind, value, owner)}
		}
		c[kind+" "+value] = b.Name
		return nil
	}
	if p := claim(field+".name", "name", b.Name); p != nil {
		return p
	}
	if p := claim(field+".socket", "socket", b.Socket); p != nil {
		return p
	}
	if b.IDPrefix != "" {
		if p := claim(field+".idPrefix", "ID prefix", b.IDPrefix); p != nil {
			return p
		}
	}
	for i, prefix := range b.ImagePrefixes {
		if p := claim(fmt.Sprintf("%s.imagePrefixes[%d]", field, i), "image prefix", prefix); p != nil {
			return p
		}
	}
	for i, handler := range b.RuntimeHandlers {
		if p := claim(fmt.Sprintf("%s.runtimeHandlers[%d]", field, i), "runtime handler", handler); p != nil {
			return p
		}
	}
	for i, annotation := range b.Annotations {
		for _, value := range slices.Compact(slices.Sorted(slices.Values(annotation.Values))) {
			if p := claim(fmt.Sprintf("%s.annotations[%d]", field, i), "annotation "+annotation.Key, value); p != nil {
				return p
			}
		}
	}
	return nil
}
