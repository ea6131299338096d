package cloudinit

import (
	"bytes"

	"go.yaml.in/yaml/v3"
)

// Document is a cloud-config. It keeps each scalar as it was written: whether
// "yes", 0644 or 2026-11-21 is a word, a number or a date is for the guest's YAML
// reader to say, and cloud-init's differs from Go's. The zero value is empty.
type Document struct {
	root *yaml.Node // a mapping without aliases, never changed; nil if empty
}

// cloudConfigHeader is the first line by which cloud-init knows the format.
const cloudConfigHeader = "#cloud-config\n"

// maxNodes bounds a document with its aliases expanded.
const maxNodes = 100_000

// ParseDocument reads a cloud-config; the "#cloud-config" line may be missing. An
// empty text is an empty document.
func ParseDocument(text []byte) (Document, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return Document{}, invalid("user-data is not YAML: %w", err)
	}
	if node.Kind == 0 || isNull(node.Content[0]) {
		return Document{}, nil
	}
	if node.Content[0].Kind != yaml.MappingNode {
		return Document{}, invalid("user-data is not a YAML map")
	}
	budget := maxNodes
	root, err := expand(node.Content[0], &budget)
	if err != nil {
		return Document{}, err
	}
	return Document{root: root}, nil
}

// IsEmpty tells whether there is no key at all.
func (d Document) IsEmpty() bool { return d.root == nil || len(d.root.Content) == 0 }

// has tells whether there is a key at the top.
func (d Document) has(key string) bool {
	if d.IsEmpty() {
		return false
	}
	for i := 0; i < len(d.root.Content); i += 2 {
		if d.root.Content[i].Value == key {
			return true
		}
	}
	return false
}

// render is nil for an empty document.
func (d Document) render() ([]byte, error) {
	if d.IsEmpty() {
		return nil, nil
	}
	text, err := marshalYAML(d.root)
	if err != nil {
		return nil, err
	}
	return append([]byte(cloudConfigHeader), text...), nil
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// expand copies a tree without aliases, merge keys ("<<") and comments, so that
// merging need not know of them.
func expand(node *yaml.Node, budget *int) (*yaml.Node, error) {
	if *budget--; *budget < 0 {
		return nil, invalid("user-data has more than %d elements with its aliases expanded", maxNodes)
	}
	switch node.Kind {
	case yaml.AliasNode:
		return expand(node.Alias, budget)
	case yaml.ScalarNode:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: node.Tag, Style: node.Style, Value: node.Value}, nil
	case yaml.SequenceNode:
		return expandSequence(node, budget)
	case yaml.MappingNode:
		return expandMapping(node, budget)
	default:
		return nil, invalid("user-data, line %d: unexpected YAML", node.Line)
	}
}

func expandSequence(node *yaml.Node, budget *int) (*yaml.Node, error) {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: node.Tag}
	for _, element := range node.Content {
		value, err := expand(element, budget)
		if err != nil {
			return nil, err
		}
		list.Content = append(list.Content, value)
	}
	return list, nil
}

func expandMapping(node *yaml.Node, budget *int) (*yaml.Node, error) {
	own := &yaml.Node{Kind: yaml.MappingNode, Tag: node.Tag}
	var inherited []*yaml.Node
	for i := 0; i < len(node.Content); i += 2 {
		key, err := expand(node.Content[i], budget)
		if err != nil {
			return nil, err
		}
		value, err := expand(node.Content[i+1], budget)
		if err != nil {
			return nil, err
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			return nil, invalid("user-data, line %d: a key is not a scalar", node.Content[i].Line)
		case key.ShortTag() == "!!merge":
			inherited = append(inherited, value)
		case lookup(own, key.Value) >= 0:
			return nil, invalid("user-data, line %d: key %q appears twice", node.Content[i].Line, key.Value)
		default:
			own.Content = append(own.Content, key, value)
		}
	}
	for _, from := range inherited {
		if err := inherit(own, from); err != nil {
			return nil, err
		}
	}
	return own, nil
}

// inherit adds what a merge key refers to, a map or a list of maps; keys that are
// there already win.
func inherit(into, from *yaml.Node) error {
	switch from.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(from.Content); i += 2 {
			if lookup(into, from.Content[i].Value) < 0 {
				into.Content = append(into.Content, from.Content[i], from.Content[i+1])
			}
		}
		return nil
	case yaml.SequenceNode:
		for _, element := range from.Content {
			if err := inherit(into, element); err != nil {
				return err
			}
		}
		return nil
	default:
		return invalid("user-data: the merge key %q refers to no map", "<<")
	}
}

// lookup returns the index of a key's value, or -1.
func lookup(mapping *yaml.Node, key string) int {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return i + 1
		}
	}
	return -1
}

func marshalYAML(value any) ([]byte, error) {
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(value); err != nil {
		return nil, invalid("cannot be written as YAML: %w", err)
	}
	if err := encoder.Close(); err != nil {
		return nil, invalid("cannot be written as YAML: %w", err)
	}
	return b.Bytes(), nil
}
