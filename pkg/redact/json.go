package redact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// JSON returns a document without what may be secret, indented. Strings in it that
// are JSON themselves, as the CRI's verbose information is, become part of it. Of
// annotations it keeps the values that keep wants, and those that kubelet writes.
func JSON(document []byte, keep func(annotation string) bool) ([]byte, error) {
	value, err := decode(document)
	if err != nil {
		return nil, fmt.Errorf("remove secrets: %w", err)
	}
	return json.MarshalIndent(cleaner{keep}.clean(value), "", "  ")
}

func decode(document []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber() // sizes and times exceed what floats hold
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	return value, nil
}

type cleaner struct{ keep func(string) bool }

func (c cleaner) clean(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			v[name] = c.member(name, member)
		}
	case []any:
		for i, member := range v {
			v[i] = c.clean(member)
		}
	case string:
		return c.text(v)
	}
	return value
}

// text cleans a string, which may be a document.
func (c cleaner) text(s string) any {
	if strings.HasPrefix(s, "{") || strings.HasPrefix(s, "[") {
		if inner, err := decode([]byte(s)); err == nil {
			return c.clean(inner)
		}
	}
	return Text(s)
}

func (c cleaner) member(name string, value any) any {
	switch lower := strings.ToLower(name); {
	case value == nil || value == "":
		return value
	case secretName.MatchString(name):
		return c.hide(value)
	case lower == annotations:
		return c.annotations(value)
	case lower == "env" || lower == "envs":
		return variables(value)
	case isCommandName(lower):
		return words(value)
	}
	return c.clean(value)
}

// hide removes a value, but not that there are members or none.
func (c cleaner) hide(value any) any {
	switch v := value.(type) {
	case bool:
		return v // tells whether there is one
	case map[string]any:
		if len(v) == 0 {
			return v
		}
	case []any:
		if len(v) == 0 {
			return v
		}
	}
	return Hidden
}

func (c cleaner) annotations(value any) any {
	members, ok := value.(map[string]any)
	if !ok {
		return c.hide(value)
	}
	for name, member := range members {
		if strings.HasPrefix(name, kubeletPrefix) || c.keep(name) {
			members[name] = c.clean(member)
		} else {
			members[name] = Hidden
		}
	}
	return members
}

// variables hides the values of an environment in any of its forms: KEY=value, a
// mapping, or a list of {key, value}.
func variables(value any) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = variables(v[i])
		}
	case map[string]any:
		for name := range v {
			if name != "key" && name != "name" {
				v[name] = Hidden
			}
		}
	case string:
		name, _, _ := strings.Cut(v, "=")
		return name + "=" + Hidden
	}
	return value
}

// words hides all words of a command but its first.
func words(value any) any {
	list, ok := value.([]any)
	if !ok {
		return Hidden
	}
	for i := 1; i < len(list); i++ {
		list[i] = Hidden
	}
	return list
}
