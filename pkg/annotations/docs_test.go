package annotations

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/annotations.md anew")

const document = "../../docs/annotations.md"

// TestDocumentation keeps docs/annotations.md equal to the table.
func TestDocumentation(t *testing.T) {
	want := markdown()
	if *update {
		if err := os.WriteFile(document, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/annotations.md is out of date; run: go generate ./pkg/annotations")
	}
}

func markdown() string {
	var b strings.Builder
	b.WriteString(`<!-- Generated from pkg/annotations/table.go by "go generate ./pkg/annotations". -->

# Annotations of a VM pod

Each annotation stands in the pod's ` + "`metadata.annotations`" + `. Virtlet's names are accepted for the
same settings, so that manifests written for it run as they are. A value that cannot be used,
or a name below ` + "`" + Domain + "`" + ` that is not in this table, fails the creation of the VM with one
sentence that says what is allowed; ` + "`kubectl describe pod`" + ` shows it.

| annotation | Virtlet's name | value | without it |
|---|---|---|---|
`)
	for _, a := range Table {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s | %s |\n", a.Name, anchor(a.Name), code(a.Alias), a.Allowed, a.Default)
	}
	for _, a := range Table {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", a.Name, a.Doc)
	}
	return b.String()
}

// anchor is how common Markdown renderers name a heading.
func anchor(heading string) string { return strings.NewReplacer(".", "", "/", "").Replace(heading) }

func code(name string) string {
	if name == "" {
		return "none"
	}
	return "`" + name + "`"
}
