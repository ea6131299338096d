package translation

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// Target is what a name means.
type Target struct {
	URL       string
	Transport *Transport // nil means the defaults
}

// Table is all translations of a moment.
type Table struct {
	files []*file // by precedence
}

// file is one translation file.
type file struct {
	path       string
	prefix     string
	rules      []rule
	transports map[string]*Transport
}

type rule struct {
	name        string
	pattern     *regexp.Regexp
	url         string
	transport   string
	transportAt value // where it stands, for errors
}

// newTable sorts files, which come by folder and name, by precedence.
func newTable(files []*file) *Table {
	slices.SortStableFunc(files, func(a, b *file) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	return &Table{files: files}
}

// Translate finds what a name without prefix of the runtime, tag and digest means.
func (t *Table) Translate(name string) (Target, bool) {
	for _, f := range t.files {
		if target, ok := f.exact(name); ok {
			return target, true
		}
	}
	for _, f := range t.files {
		if target, ok := f.matching(name); ok {
			return target, true
		}
	}
	return Target{}, false
}

// local is the name within the file, if the file is meant.
func (f *file) local(name string) (string, bool) {
	if f.prefix == "" {
		return name, true
	}
	return strings.CutPrefix(name, f.prefix+"/")
}

func (f *file) exact(name string) (Target, bool) {
	local, ok := f.local(name)
	if !ok || local == "" {
		return Target{}, false
	}
	for _, r := range f.rules {
		if r.name == local {
			return f.target(r, r.url), true
		}
	}
	return Target{}, false
}

func (f *file) matching(name string) (Target, bool) {
	local, ok := f.local(name)
	if !ok {
		return Target{}, false
	}
	for _, r := range f.rules {
		if r.pattern == nil {
			continue
		}
		if match := r.pattern.FindStringSubmatchIndex(local); match != nil {
			return f.target(r, string(r.pattern.ExpandString(nil, r.url, local, match))), true
		}
	}
	return Target{}, false
}

func (f *file) target(r rule, url string) Target {
	return Target{URL: url, Transport: f.transports[r.transport]}
}
