package cloudinit

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// merger lays one YAML tree over another; neither is changed, and the result may
// share nodes with both.
type merger interface {
	merge(base, over *yaml.Node) *yaml.Node
}

// Merge lays one cloud-config over another. By default maps are merged key by
// key, lists are appended, other values are replaced, and an explicit null deletes
// the key. The key merge_how (or merge_type) of over selects cloud-init's own
// rules instead, with its words: dict(replace|no_replace, recurse_list,
// recurse_str, allow_delete), list(append|prepend|replace|no_replace,
// recurse_dict, recurse_list, recurse_str), str(append). Unlike cloud-init, an
// option that is not one of these is an error.
func Merge(base, over Document) (Document, error) {
	if base.IsEmpty() || over.IsEmpty() {
		if base.IsEmpty() {
			base = over
		}
		return base, nil
	}
	rules, over, err := takeMergeRules(over)
	if err != nil {
		return Document{}, err
	}
	return Document{root: rules.merge(base.root, over.root)}, nil
}

// deepMerge is the default.
type deepMerge struct{}

func (m deepMerge) merge(base, over *yaml.Node) *yaml.Node {
	switch {
	case base.Kind == yaml.MappingNode && over.Kind == yaml.MappingNode:
		return mergeKeys(base, over, true, m.merge)
	case base.Kind == yaml.SequenceNode && over.Kind == yaml.SequenceNode:
		return concat(base, over)
	default:
		return over
	}
}

func concat(first, second *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Content: slices.Concat(first.Content, second.Content)}
}

// mergeKeys adds new keys and lets same decide on those that both have.
func mergeKeys(base, over *yaml.Node, allowDelete bool, same func(base, over *yaml.Node) *yaml.Node) *yaml.Node {
	merged := &yaml.Node{Kind: yaml.MappingNode, Content: slices.Clone(base.Content)}
	for i := 0; i < len(over.Content); i += 2 {
		key, value := over.Content[i], over.Content[i+1]
		at := lookup(merged, key.Value)
		switch {
		case isNull(value) && allowDelete:
			if at >= 0 {
				merged.Content = slices.Delete(merged.Content, at-1, at+1)
			}
		case at >= 0:
			merged.Content[at] = same(merged.Content[at], value)
		default:
			merged.Content = append(merged.Content, key, value)
		}
	}
	return merged
}

// mergeRules are what cloud-init's merge_how names: options by kind of value. A
// kind that is missing is not merged.
type mergeRules map[string][]string

// mergeOptions are the options that each kind may have.
var mergeOptions = map[string][]string{
	"dict": {"replace", "no_replace", "recurse_str", "recurse_list", "recurse_array", "recurse_dict", "allow_delete"},
	"list": {"append", "prepend", "replace", "no_replace", "recurse_str", "recurse_list", "recurse_array", "recurse_dict"},
	"str":  {"append"},
}

// takeMergeRules returns the rules that a document asks for, and the document
// without the key that does.
func takeMergeRules(doc Document) (merger, Document, error) {
	rest := &yaml.Node{Kind: yaml.MappingNode, Content: slices.Clone(doc.root.Content)}
	for _, key := range []string{"merge_how", "merge_type"} {
		at := lookup(rest, key)
		if at < 0 {
			continue
		}
		rules, err := parseMergeRules(rest.Content[at])
		rest.Content = slices.Delete(rest.Content, at-1, at+1)
		return rules, Document{root: rest}, err
	}
	return deepMerge{}, doc, nil
}

// parseMergeRules reads "list(append)+dict(replace)", or a list of maps with name
// and settings.
func parseMergeRules(node *yaml.Node) (mergeRules, error) {
	rules := mergeRules{}
	if node.Kind == yaml.ScalarNode {
		for part := range strings.SplitSeq(node.Value, "+") {
			name, rest, found := strings.Cut(strings.TrimSpace(part), "(")
			options, closed := strings.CutSuffix(rest, ")")
			if !found || !closed {
				return nil, invalid("user-data: merge_how %q is not like list(append)+dict(replace)", node.Value)
			}
			if err := rules.add(name, strings.FieldsFunc(options, func(r rune) bool { return r == ',' || r == ' ' })); err != nil {
				return nil, err
			}
		}
		return rules, nil
	}
	var list []struct {
		Name     string   `yaml:"name"`
		Settings []string `yaml:"settings"`
	}
	if err := node.Decode(&list); err != nil {
		return nil, invalid("user-data: merge_how: %w", err)
	}
	for _, entry := range list {
		if err := rules.add(entry.Name, entry.Settings); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

func (r mergeRules) add(name string, options []string) error {
	name = strings.ToLower(name)
	known, ok := mergeOptions[name]
	if !ok {
		return invalid("user-data: merge_how: %q is not dict, list or str", name)
	}
	r[name] = []string{}
	for _, option := range options {
		option = strings.ToLower(option)
		if !slices.Contains(known, option) {
			return invalid("user-data: merge_how: %s has no option %q; it has %s", name, option, strings.Join(known, ", "))
		}
		r[name] = append(r[name], option)
	}
	return nil
}

func (r mergeRules) has(kind, option string) bool { return slices.Contains(r[kind], option) }

// method is the first of the given options that is set, or the last of them.
func (r mergeRules) method(kind string, options ...string) string {
	for _, option := range options {
		if r.has(kind, option) {
			return option
		}
	}
	return options[len(options)-1]
}

func (r mergeRules) merge(base, over *yaml.Node) *yaml.Node {
	kind := kindOf(base)
	if _, ok := r[kind]; !ok {
		return base
	}
	switch kind {
	case "dict":
		return r.mergeDict(base, over)
	case "list":
		return r.mergeList(base, over)
	default:
		if r.has("str", "append") && kindOf(over) == "str" {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: base.Value + over.Value}
		}
		return over
	}
}

func (r mergeRules) mergeDict(base, over *yaml.Node) *yaml.Node {
	if kindOf(over) != "dict" {
		return base
	}
	replace := r.method("dict", "replace", "no_replace") == "replace"
	return mergeKeys(base, over, r.has("dict", "allow_delete"), func(before, after *yaml.Node) *yaml.Node {
		switch {
		case replace:
			return after
		case r.recurses("dict", after) || kindOf(after) == "dict":
			return r.merge(before, after)
		default:
			return before
		}
	})
}

// mergeList follows cloud-init where it surprises: replace exchanges the elements
// at equal positions and does not make the list longer.
func (r mergeRules) mergeList(base, over *yaml.Node) *yaml.Node {
	method := r.method("list", "append", "prepend", "no_replace", "replace")
	if kindOf(over) != "list" {
		if method == "replace" {
			return over
		}
		return base
	}
	switch method {
	case "append":
		return concat(base, over)
	case "prepend":
		return concat(over, base)
	case "no_replace":
		return base
	}
	merged := &yaml.Node{Kind: yaml.SequenceNode, Content: slices.Clone(base.Content)}
	for i := range min(len(base.Content), len(over.Content)) {
		if after := over.Content[i]; r.recurses("list", after) {
			merged.Content[i] = r.merge(base.Content[i], after)
		} else {
			merged.Content[i] = after
		}
	}
	return merged
}

// recurses tells whether a value inside a map or list is merged itself.
func (r mergeRules) recurses(inside string, value *yaml.Node) bool {
	kind := kindOf(value)
	return r.has(inside, "recurse_"+kind) || (kind == "list" && r.has(inside, "recurse_array"))
}

// kindOf names a value as merge_how does; numbers and the like have no name.
func kindOf(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "dict"
	case node.Kind == yaml.SequenceNode:
		return "list"
	case node.ShortTag() == "!!str":
		return "str"
	default:
		return ""
	}
}
