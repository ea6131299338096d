package proxy

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// LoadConfig reads a configuration file. Settings that it leaves out are as in
// DefaultConfig; its backends replace the default ones. The error is one
// sentence that names the file, the line and the field.
func LoadConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return ParseConfig(path, text)
}

// ParseConfig is LoadConfig for a text that is already there; path is for errors.
func ParseConfig(path string, text []byte) (*Config, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, syntaxError(path, err)
	}
	r := &reader{path: path, lines: map[string]int{}}
	c := DefaultConfig()
	if len(document.Content) > 0 {
		r.config(document.Content[0], c)
	}
	if r.err == nil {
		if p := c.validate(); p != nil {
			r.fail(r.lineOf(p.field), p.field, p.text)
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// syntaxError brings the parser's "yaml: line 3: ..." into our form. The parser
// says nothing about the line when it is the first.
func syntaxError(path string, err error) error {
	line, text := "1", strings.TrimPrefix(err.Error(), "yaml: ")
	if parts := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(text); parts != nil {
		line, text = parts[1], parts[2]
	}
	return fmt.Errorf("%s, line %s: the file is no YAML: %s", path, line, text)
}

// reader turns YAML nodes into a Config. It keeps the first error and remembers
// where every field was.
type reader struct {
	path  string
	lines map[string]int // field to line
	err   error
}

func (r *reader) fail(line int, field, text string) {
	if r.err == nil {
		r.err = errors.New(r.path + ", line " + strconv.Itoa(line) + ", " + field + ": " + text)
	}
}

// lineOf is the line of a field, or of what contains it when the file lacks it.
func (r *reader) lineOf(field string) int {
	for field != "" {
		if line, ok := r.lines[field]; ok {
			return line
		}
		field = field[:max(strings.LastIndexAny(field, ".["), 0)]
	}
	return 1
}

// fields reads a mapping by a table of its keys; any other key is an error.
func (r *reader) fields(node *yaml.Node, field string, table map[string]func(node *yaml.Node, field string)) {
	if node.Kind != yaml.MappingNode {
		r.fail(node.Line, orTop(field), "must be a mapping of keys to values")
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		at := strings.TrimPrefix(field+"."+key.Value, ".")
		read, known := table[key.Value]
		if !known {
			r.fail(key.Line, at, "unknown field")
			return
		}
		if _, twice := r.lines[at]; twice {
			r.fail(key.Line, at, "given twice")
			return
		}
		r.lines[at] = key.Line
		read(value, at)
	}
}

func orTop(field string) string {
	if field == "" {
		return "top level"
	}
	return field
}

// items reads a sequence.
func (r *reader) items(node *yaml.Node, field string, read func(node *yaml.Node, field string)) {
	if node.Kind != yaml.SequenceNode {
		r.fail(node.Line, field, "must be a list")
		return
	}
	for i, item := range node.Content {
		at := fmt.Sprintf("%s[%d]", field, i)
		r.lines[at] = item.Line
		read(item, at)
	}
}

// text makes a function that reads a string into a variable.
func (r *reader) text(to *string) func(*yaml.Node, string) {
	return func(node *yaml.Node, field string) {
		if node.Kind != yaml.ScalarNode || node.Tag != "!!str" {
			r.fail(node.Line, field, "must be a string")
			return
		}
		*to = node.Value
	}
}

// texts makes a function that reads a list of strings into a variable.
func (r *reader) texts(to *[]string) func(*yaml.Node, string) {
	return func(node *yaml.Node, field string) {
		r.items(node, field, func(item *yaml.Node, field string) {
			var value string
			r.text(&value)(item, field)
			*to = append(*to, value)
		})
	}
}

func (r *reader) flag(to *bool) func(*yaml.Node, string) {
	return func(node *yaml.Node, field string) {
		if node.Kind != yaml.ScalarNode || node.Tag != "!!bool" || node.Decode(to) != nil {
			r.fail(node.Line, field, "must be true or false")
		}
	}
}

func (r *reader) config(node *yaml.Node, c *Config) {
	r.fields(node, "", map[string]func(*yaml.Node, string){
		"listen":         r.text(&c.Listen),
		"stateDir":       r.text(&c.StateDir),
		"metricsAddress": r.text(&c.MetricsAddress),
		"backends": func(node *yaml.Node, field string) {
			c.Backends = nil
			r.items(node, field, func(item *yaml.Node, field string) {
				var b BackendConfig
				r.backend(item, field, &b)
				c.Backends = append(c.Backends, b)
			})
		},
	})
}

func (r *reader) backend(node *yaml.Node, field string, b *BackendConfig) {
	r.fields(node, field, map[string]func(*yaml.Node, string){
		"name":            r.text(&b.Name),
		"default":         r.flag(&b.Default),
		"socket":          r.text(&b.Socket),
		"idPrefix":        r.text(&b.IDPrefix),
		"imagePrefixes":   r.texts(&b.ImagePrefixes),
		"runtimeHandlers": r.texts(&b.RuntimeHandlers),
		"annotations": func(node *yaml.Node, field string) {
			r.items(node, field, func(item *yaml.Node, field string) {
				var a Annotation
				r.fields(item, field, map[string]func(*yaml.Node, string){"key": r.text(&a.Key), "values": r.texts(&a.Values)})
				b.Annotations = append(b.Annotations, a)
			})
		},
	})
}
