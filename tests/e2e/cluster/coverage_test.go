package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryExampleIsApplied looks for examples that neither a test nor the demo
// names.
func TestEveryExampleIsApplied(t *testing.T) {
	t.Parallel()
	const top = "../../.."
	var sources strings.Builder
	for _, pattern := range []string{"tests/e2e/cluster/*_test.go", "hack/node/*.go", "docs/quickstart.md"} {
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
