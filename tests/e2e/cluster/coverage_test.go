package cluster

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

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
