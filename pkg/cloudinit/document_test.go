package cloudinit

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func parse(t *testing.T, text string) Document {
	t.Helper()
	doc, err := ParseDocument([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func text(t *testing.T, doc Document) string {
	t.Helper()
	rendered, err := doc.render()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(string(rendered), cloudConfigHeader)
}

// What the author wrote must mean the same to PyYAML after a round trip through
// Go: words, numbers and dates stay as they are written.
func TestDocumentKeepsScalars(t *testing.T) {
	for _, line := range []string{
		"a: yes\n", "a: no\n", "a: off\n", "a: y\n", "a: 0644\n", "a: 0o644\n", "a: 0x1F\n", "a: 1_000\n", "a: 12:30:45\n",
		"a: 2026-11-21\n", "a: 1.10\n", "a: ~\n", "a: null\n", "a: .inf\n", "a: !!binary aGVsbG8=\n", "a: \"yes\"\n", "a: 'it''s'\n",
		"a: |\n  text\n  more\n", "a: >-\n  folded\n", "a: true\n", "a: ümlaut\n", "a: {}\n", "a: []\n", "yes: 1\n", "8080: 1\n",
	} {
		if got := text(t, parse(t, "#cloud-config\n"+line)); got != line {
			t.Errorf("%q became %q", line, got)
		}
	}
}

func TestParseDocument(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"#cloud-config\n":       "",
		"# only a comment\n":    "",
		"~\n":                   "",
		"{}":                    "",
		"a: [1, {b: c}]":        "a:\n  - 1\n  - b: c\n",
		"a: &x {b: 1}\nc: *x\n": "a:\n  b: 1\nc:\n  b: 1\n",
		"a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n":             "a:\n  b: 1\n  c: 2\nd:\n  c: 3\n  b: 1\n",
		"a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne: {<<: [*x, *y]}": "a:\n  b: 1\nc:\n  b: 2\n  d: 3\ne:\n  b: 1\n  d: 3\n",
		"# a comment\na: 1 # another\n":                       "a: 1\n",
	} {
		if got := text(t, parse(t, in)); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestParseDocumentRefusals(t *testing.T) {
	bomb := "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
	for i := 1; i < 9; i++ {
		before, now := string(rune('0'+i-1)), string(rune('0'+i))
		bomb += "a" + now + ": &a" + now + " [" + strings.TrimSuffix(strings.Repeat("*a"+before+", ", 9), ", ") + "]\n"
	}
	for name, in := range map[string]string{
		"list":              "- a list\n",
		"text":              "text",
		"unclosed":          "a: [",
		"key twice":         "a: 1\na: 2\n",
		"key twice, nested": "b: {a: 1, a: 2}\n",
		"map as key":        "{a: 1}: 2\n",
		"alias to itself":   "a: &x [*x]\n",
		"bomb":              bomb,
		"merge of no map":   "a: {<<: 1}\n",
	} {
		if _, err := ParseDocument([]byte(in)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got error %v, want an invalid argument", name, err)
		}
	}
}

func TestMerge(t *testing.T) {
	for name, test := range map[string]struct{ base, over, want string }{
		"maps are merged":         {"a: {b: 1, c: 2}", "a: {c: 3, d: 4}", "a: {b: 1, c: 3, d: 4}"},
		"lists are appended":      {"a: [1, 2]", "a: [2, 3]", "a: [1, 2, 2, 3]"},
		"scalars are replaced":    {"a: 1", "a: two", "a: two"},
		"null deletes":            {"a: 1\nb: 2", "a: null", "b: 2"},
		"null deletes inside":     {"a: {b: 1, c: 2}", "a: {b: null}", "a: {c: 2}"},
		"null deletes nothing":    {"b: 2", "a: null", "b: 2"},
		"kinds differ":            {"a: [1]\nb: {c: 1}\nd: x", "a: {x: 1}\nb: [2]\nd: [3]", "a: {x: 1}\nb: [2]\nd: [3]"},
		"empty base":              {"", "a: 1", "a: 1"},
		"empty over":              {"a: 1", "", "a: 1"},
		"lists in maps in common": {"a: {b: [1]}", "a: {b: [2]}", "a: {b: [1, 2]}"},

		// The rest are cloud-init's rules, with what cloud-init makes of them.
		"how: cloud-init's default for parts": {"a: {b: 1}\nc: [1]\nd: x", "merge_how: dict(replace)+list()+str()\na: {e: 1}\nc: [2]", "a: {e: 1}\nc: [2]\nd: x"},
		"how: nothing is replaced":            {"a: {b: 1, c: [1]}", "merge_how: list()+dict()+str()\na: {b: 2, c: [2], d: 4}", "a: {b: 1, c: [1], d: 4}"},
		"how: lists appended":                 {"a: {c: [1]}", "merge_how: list(append)+dict(recurse_list)+str()\na: {c: [2]}", "a: {c: [1, 2]}"},
		"how: lists prepended":                {"a: [1]", "merge_how: 'list(prepend)+dict(no_replace,recurse_array)'\na: [2]", "a: [2, 1]"},
		"how: equal positions":                {"a: [1, 2]", "merge_how: 'list()+dict(recurse_list)'\na: [3]", "a: [3, 2]"},
		"how: equal positions, no longer":     {"a: [1]", "merge_how: 'list()+dict(recurse_list)'\na: [3, 4]", "a: [3]"},
		"how: lists kept":                     {"a: [1]", "merge_how: 'list(no_replace)+dict(recurse_list)'\na: [3]", "a: [1]"},
		"how: maps in lists":                  {"a: [{b: 1}]", "merge_how: 'list(replace,recurse_dict)+dict(recurse_list)'\na: [{b: 2, c: 3}]", "a: [{b: 1, c: 3}]"},
		"how: strings appended":               {"a: x", "merge_how: str(append)+dict(recurse_str)\na: y", "a: xy"},
		"how: strings replaced":               {"a: x", "merge_how: str()+dict(recurse_str)\na: y", "a: y"},
		"how: numbers kept":                   {"a: 1", "merge_how: str(append)+dict(recurse_str)\na: 2", "a: 1"},
		"how: null deletes":                   {"a: 1\nb: 1", "merge_how: 'dict(replace, allow_delete)'\na: null", "b: 1"},
		"how: null is a value":                {"a: 1", "merge_how: dict(replace)\na: null", "a: null"},
		"how: list of maps":                   {"a: [1]", "merge_how: [{name: list, settings: [append]}, {name: dict, settings: [no_replace, recurse_list]}]\na: [2]", "a: [1, 2]"},
		"type: the other name":                {"a: [1]", "merge_type: list(append)+dict(recurse_list)\na: [2]", "a: [1, 2]"},
		"how: no rule for maps":               {"a: 1", "merge_how: list(append)\nb: 2", "a: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			base, over := parse(t, test.base), parse(t, test.over)
			merged, err := Merge(base, over)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(text(t, parse(t, test.want)), text(t, merged)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(text(t, parse(t, test.base)), text(t, base)); diff != "" {
				t.Errorf("the base was changed: %s", diff)
			}
			if diff := cmp.Diff(text(t, parse(t, test.over)), text(t, over)); diff != "" {
				t.Errorf("the overlay was changed: %s", diff)
			}
		})
	}
}

func TestMergeRefusals(t *testing.T) {
	for _, how := range []string{
		"append", "list(append", "tuple(append)", "list(sideways)", "[{name: list, settings: 1}]", "{list: append}", "str(replace)", "''",
	} {
		if _, err := Merge(parse(t, "a: 1"), parse(t, "merge_how: "+how+"\na: 2")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got error %v, want an invalid argument", how, err)
		}
	}
}

func FuzzDocument(f *testing.F) {
	for _, seed := range []string{"a: 1", "a: &x [1]\nb: *x", "a: {<<: {b: 1}}", "merge_how: list(append)\na: [1]", "a: |\n x\n", "? a\n: b"} {
		f.Add([]byte(seed), []byte("a: [2]"))
	}
	f.Fuzz(func(t *testing.T, base, over []byte) {
		b, err := ParseDocument(base)
		if err != nil {
			return
		}
		o, err := ParseDocument(over)
		if err != nil {
			return
		}
		merged, err := Merge(b, o)
		if err != nil {
			return
		}
		rendered, err := merged.render()
		if err != nil {
			return // YAML can hold tags that it cannot write
		}
		again, err := ParseDocument(rendered)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%q", err, rendered)
		}
		if diff := cmp.Diff(text(t, merged), text(t, again)); diff != "" {
			t.Errorf("a second round trip differs: %s", diff)
		}
	})
}
