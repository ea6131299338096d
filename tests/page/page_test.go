package page_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/tests/page"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOnlyTheTextBetweenMarkersIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	const before = "above\n<!-- begin: one -->\nold\n<!-- end: one -->\n<!-- begin: two -->\n<!-- end: two -->\nbelow\n"
	if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	for by, text := range map[string]string{"one": "new\n", "two": "| a |\n"} {
		if err := page.Replace(path, by, text); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const after = "above\n<!-- begin: one -->\nnew\n<!-- end: one -->\n<!-- begin: two -->\n| a |\n<!-- end: two -->\nbelow\n"
	if diff := cmp.Diff(after, string(got)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

func TestAPageWithoutMarkersStaysAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	for _, text := range []string{"nothing\n", "<!-- begin: one -->\nno end\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := page.Replace(path, "one", "new\n"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Replace in %q returned %v, want a failed precondition", text, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("the page is now %q (%v)", got, err)
		}
	}
}

// Those of the benchmarks' page are tested with the sections, in tests/bench.
func TestThePagesOfTheRepositoryHaveMarkers(t *testing.T) {
	for by, name := range map[string]string{
		"written by make conformance": "conformance.md",
		"written by make faults":      "faults.md",
		"written by make soak":        "faults.md",
	} {
		data, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := page.Replace(path, by, "new\n"); err != nil {
			t.Error(err)
		}
	}
}
