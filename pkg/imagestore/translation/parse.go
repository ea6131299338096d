package translation

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// schemes are the protocols of targets; a target without one gets the default.
var schemes = []string{"http", "https", "oci", "file"}

// fault is something wrong at a place of a file.
type fault struct {
	line  int
	field string
	text  string
}

func (f *fault) Error() string { return fmt.Sprintf("line %d, %s: %s", f.line, f.field, f.text) }

// value is a node of a file and the path of its field, for errors.
type value struct {
	node  *yaml.Node
	field string
}

func (v value) fault(format string, args ...any) error {
	return &fault{line: v.node.Line, field: v.field, text: fmt.Sprintf(format, args...)}
}

// parse reads a translation file; its error names path, line and field.
func parse(path string, raw []byte) (*file, error) {
	f := &file{path: path, transports: map[string]*Transport{}}
	document, err := onlyDocument(raw)
	if err == nil && document != nil {
		err = f.parse(value{node: document, field: "document"})
	}
	if err != nil {
		return nil, fmt.Errorf("image translation file %s, %w", path, err)
	}
	return f, nil
}

// onlyDocument is what a file holds; nil if that is nothing. What stands in a second
// document must not be passed over in silence.
func onlyDocument(raw []byte) (only *yaml.Node, err error) {
	for documents := yaml.NewDecoder(bytes.NewReader(raw)); ; {
		var next yaml.Node
		switch err := documents.Decode(&next); {
		case errors.Is(err, io.EOF):
			return only, nil
		case err != nil:
			return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
		}
		for _, content := range next.Content {
			v := value{node: content, field: "document"}
			switch {
			case v.null():
			case only != nil:
				return nil, v.fault("a file can have one document only, and this is the second; make it a file of its own")
			default:
				only = content
			}
		}
	}
}

// parse reads the fields of a file, or those of the spec of a VirtletImageMapping,
// the object in which Virtlet users keep the same fields.
func (f *file) parse(top value) error {
	ignore := func(value) error { return nil }
	readers := f.readers()
	maps.Copy(readers, map[string]func(value) error{
		"apiVersion": ignore,
		"kind":       ignore,
		"metadata":   ignore,
		// A spec cannot hold another, not even itself by an alias.
		"spec": func(v value) error { return v.mapping(f.readers(), f.checkTransports) },
	})
	return top.mapping(readers, f.checkTransports)
}

// readers are those of the fields of a file.
func (f *file) readers() map[string]func(value) error {
	return map[string]func(value) error{
		"prefix": func(v value) error {
			if err := v.text(&f.prefix); err != nil || !strings.HasSuffix(f.prefix, "/") {
				return err
			}
			return v.fault("the prefix ends with a slash, so no name would ever match; leave it away")
		},
		"translations": func(v value) error { return v.list(f.parseRule) },
		"transports": func(v value) error {
			return v.each(func(name string, v value) error {
				transport, err := parseTransport(v)
				if err == nil {
					transport.ID = f.path + "#" + name
					f.transports[name] = transport
				}
				return err
			})
		},
	}
}

// checkTransports refuses a rule whose profile is missing: falling back to the
// defaults could send a download past its proxy or its certificates.
func (f *file) checkTransports() error {
	for _, r := range f.rules {
		if r.transport != "" && f.transports[r.transport] == nil {
			return r.transportAt.fault("there is no transport %q", r.transport)
		}
	}
	return nil
}

func (f *file) parseRule(v value) error {
	var r rule
	var pattern string
	err := v.mapping(map[string]func(value) error{
		"name": func(v value) error { return v.text(&r.name) },
		"regexp": func(v value) error {
			if err := v.text(&pattern); err != nil || pattern == "" {
				return err
			}
			var err error
			if r.pattern, err = regexp.Compile(pattern); err != nil {
				return v.fault("%s", err)
			}
			return nil
		},
		"url": func(v value) error { return v.target(&r.url) },
		"transport": func(v value) error {
			r.transportAt = v
			return v.text(&r.transport)
		},
	}, func() error {
		switch {
		case r.name == "" && r.pattern == nil:
			return v.fault("neither name nor regexp is given")
		case r.url == "":
			return v.fault("no url is given")
		}
		return nil
	})
	f.rules = append(f.rules, r)
	return err
}

// target reads a URL, in which $1 and the like may stand.
func (v value) target(into *string) error {
	if err := v.text(into); err != nil {
		return err
	}
	scheme, _, found := strings.Cut(*into, "://")
	if found && !slices.Contains(schemes, scheme) {
		return v.fault("the protocol of %q is none of %s", redacted(*into), strings.Join(schemes, ", "))
	}
	return nil
}

// redacted is a URL without the user and password in it.
func redacted(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	if !found {
		scheme, rest = "", raw
	}
	host, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		host = "…" + host[at:]
	}
	return strings.TrimPrefix(scheme+"://"+host+"/"+path, "://")
}

// mapping hands each field to its reader, then calls done.
func (v value) mapping(readers map[string]func(value) error, done func() error) error {
	err := v.each(func(key string, field value) error {
		read := readers[key]
		if read == nil {
			return field.fault("there is no such field")
		}
		return read(field)
	})
	if err != nil {
		return err
	}
	return done()
}

// each visits the fields of a mapping; none of them may come twice.
func (v value) each(visit func(key string, field value) error) error {
	v = v.resolved()
	if v.null() {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		return v.fault("fields are expected here")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := v.node.Content[i]
		field := value{node: v.node.Content[i+1], field: strings.TrimPrefix(v.field+"."+key.Value, "document.")}
		if seen[key.Value] {
			return field.fault("the field is given twice")
		}
		seen[key.Value] = true
		if err := visit(key.Value, field); err != nil {
			return err
		}
	}
	return nil
}

// list visits the items of a list.
func (v value) list(visit func(value) error) error {
	v = v.resolved()
	if v.null() {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		return v.fault("a list is expected here")
	}
	for i, item := range v.node.Content {
		if err := visit(value{node: item, field: fmt.Sprintf("%s[%d]", v.field, i)}); err != nil {
			return err
		}
	}
	return nil
}

// resolved follows an alias to what it stands for.
func (v value) resolved() value {
	if v.node.Kind == yaml.AliasNode {
		v.node = v.node.Alias
	}
	return v
}

func (v value) null() bool { return v.node.ShortTag() == "!!null" }

func (v value) text(into *string) error {
	v = v.resolved()
	if v.null() {
		return nil
	}
	if v.node.Kind != yaml.ScalarNode {
		return v.fault("text is expected here")
	}
	*into = v.node.Value
	return nil
}

func (v value) number(into *int) error {
	v = v.resolved()
	if v.null() {
		return nil
	}
	n, err := strconv.Atoi(v.node.Value)
	if v.node.Kind != yaml.ScalarNode || err != nil {
		return v.fault("a whole number is expected here")
	}
	*into = n
	return nil
}

func (v value) flag(into *bool) error {
	v = v.resolved()
	if v.null() {
		return nil
	}
	if v.node.ShortTag() != "!!bool" {
		return v.fault("true or false is expected here")
	}
	return v.node.Decode(into)
}

// proxy reads the URL of a proxy. Its parser's errors are not repeated, they
// could contain a password.
func (v value) proxy(into **url.URL) error {
	var raw string
	if err := v.text(&raw); err != nil || raw == "" {
		return err
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return v.fault("the proxy is no URL such as http://proxy.example:8080")
	}
	*into = u
	return nil
}
