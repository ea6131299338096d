package cluster

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/ambipod/ambipod/pkg/annotations"
)

// vocabulary is what the files of examples/ use.
type vocabulary struct {
	annotated []map[string]string // the annotations of each object or template that has any
	keys      map[string]bool     // every key of every mapping
}

// readExamples reads every file of examples/.
func readExamples(t *testing.T) vocabulary {
	t.Helper()
	v := vocabulary{keys: map[string]bool{}}
	files, err := filepath.Glob("../../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples are found: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		decoder := yaml.NewDecoder(strings.NewReader(string(text)))
		for {
			var document any
			err := decoder.Decode(&document)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			v.add(document)
		}
	}
	return v
}

// add takes in a part of a document and all below it.
func (v *vocabulary) add(part any) {
	switch part := part.(type) {
	case []any:
		for _, item := range part {
			v.add(item)
		}
	case map[string]any:
		for key, value := range part {
			v.keys[key] = true
			v.add(value)
			if values, ok := value.(map[string]any); ok && key == "annotations" {
				v.annotate(values)
			}
		}
	}
}

// annotate takes in annotations, whose values are texts if the object is well-formed.
func (v *vocabulary) annotate(values map[string]any) {
	texts := map[string]string{}
	for key, value := range values {
		texts[key], _ = value.(string)
	}
	v.annotated = append(v.annotated, texts)
}

// TestEveryAnnotationHasAnExample looks for annotations in Ambipod's table that no example
// uses, under either of their names, and for values in examples that it would refuse.
func TestEveryAnnotationHasAnExample(t *testing.T) {
	t.Parallel()
	v := readExamples(t)
	used := map[string]bool{}
	for _, one := range v.annotated {
		if _, err := annotations.Parse(one); err != nil {
			t.Errorf("an example is refused: %v", err)
		}
		for name := range one {
			used[name] = true
		}
	}
	for _, a := range annotations.Table {
		if !used[a.Name] && !used[a.Alias] {
			t.Errorf("no file of examples/ uses %s: add one that does, and a row of TestExamples that sees its effect in the guest", a.Name)
		}
	}
}

// quoted is a name or command in a text of documentation.
var quoted = regexp.MustCompile("`([^`\n]+)`")

// TestEveryFieldHasAnExample looks for what docs/vm-pods.md says that a pod's spec can say,
// and no example does; and for commands that neither an example nor the quick start shows.
func TestEveryFieldHasAnExample(t *testing.T) {
	t.Parallel()
	const top = "../../.."
	page, err := os.ReadFile(filepath.Join(top, "docs", "vm-pods.md"))
	if err != nil {
		t.Fatal(err)
	}
	quickstart, err := os.ReadFile(filepath.Join(top, "docs", "quickstart.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| in the pod's spec |")
	table, _, _ = strings.Cut(table, "\n\n")
	v, names := readExamples(t), 0
	for line := range strings.Lines(table) {
		cell := strings.Split(line, "|")
		if len(cell) < 2 {
			continue
		}
		for _, name := range quoted.FindAllStringSubmatch(cell[1], -1) {
			names++
			key := name[1][strings.LastIndex(name[1], ".")+1:]
			if !v.keys[key] && !strings.Contains(string(quickstart), name[1]) {
				t.Errorf("docs/vm-pods.md speaks of %s, which neither a file of examples/ nor docs/quickstart.md shows", name[1])
			}
		}
	}
	if names == 0 {
		t.Error("docs/vm-pods.md has no table of a pod's fields")
	}
}

// TestReadmeListsExamples keeps the list in examples/README.md complete.
func TestReadmeListsExamples(t *testing.T) {
	t.Parallel()
	const dir = "../../../examples"
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples are found: %v", err)
	}
	listed := map[string]bool{}
	for _, name := range quoted.FindAllSubmatch(page, -1) {
		listed[string(name[1])] = true
	}
	for _, example := range examples {
		if name := filepath.Base(example); !listed[name] {
			t.Errorf("examples/README.md lacks %s", name)
		}
	}
}

// TestEveryExampleIsApplied looks for examples that neither a test nor the demo
// names.
func TestEveryExampleIsApplied(t *testing.T) {
	t.Parallel()
	const top = "../../.."
	var sources strings.Builder
	for _, pattern := range []string{"tests/e2e/cluster/*_test.go", "tests/e2e/install/*_test.go", "hack/node/*.go", "docs/quickstart.md"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	examples, err := filepath.Glob(filepath.Join(top, "examples", "*.yaml"))
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples are found: %v", err)
	}
	for _, example := range examples {
		if !strings.Contains(sources.String(), filepath.Base(example)) {
			t.Errorf("nothing applies %s", filepath.Base(example))
		}
	}
}

// TestTestsOfVirtletExist looks for tests that docs/virtlet.md names and nobody wrote.
func TestTestsOfVirtletExist(t *testing.T) {
	t.Parallel()
	const top = "../../.."
	page, err := os.ReadFile(filepath.Join(top, "docs", "virtlet.md"))
	if err != nil {
		t.Fatal(err)
	}
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go"} {
		files, err := filepath.Glob(filepath.Join(top, "tests", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	names := regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllSubmatch(page, -1)
	if len(names) == 0 {
		t.Error("docs/virtlet.md names no test")
	}
	for _, name := range names {
		if !strings.Contains(sources.String(), "func "+string(name[1])+"(t *testing.T)") {
			t.Errorf("docs/virtlet.md names %s, which is no test", name[1])
		}
	}
}
