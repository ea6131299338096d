package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reportJSON has the shapes that critest's report has: a suite node, a spec that
// its filter left out, one that it skipped itself.
const reportJSON = `[{"SuiteDescription": "CRI validation", "SpecReports": [
{"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
{"ContainerHierarchyTexts": ["[k8s.io] Image", "benchmark"], "LeafNodeType": "It", "LeafNodeText": "pulls", "State": "skipped"},
{"ContainerHierarchyTexts": ["[k8s.io] AppArmor"], "LeafNodeType": "It", "LeafNodeText": "enforces", "State": "skipped", "Failure": {"Message": "AppArmor is disabled"}},
{"ContainerHierarchyTexts": ["[k8s.io] Image", "manager"], "LeafNodeType": "It", "LeafNodeText": "pulls", "State": "failed", "Failure": {"Message": "not found\nat line 7"}},
{"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": "It", "LeafNodeText": "runs", "State": "passed"}]}]`

func TestReadReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(reportJSON), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []spec{
		{Name: "[k8s.io] AppArmor enforces", State: "skipped", Reason: "AppArmor is disabled"},
		{Name: "[k8s.io] Image manager pulls", State: "failed", Reason: "not found"},
		{Name: "[k8s.io] Pod runs", State: "passed"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

func TestAReportWithoutSpecsIsAnError(t *testing.T) {
	for name, text := range map[string]string{"no suite": `[]`, "no spec": `[{}]`, "no JSON": `passed`} {
		path := filepath.Join(t.TempDir(), "report.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if specs, err := readReport(path); err == nil {
			t.Errorf("%s: got %v, want an error", name, specs)
		}
	}
}

func TestProgressCountsEndedSpecs(t *testing.T) {
	var progress bytes.Buffer
	out := strings.Repeat("STEP: pull\n• [0.016 seconds]\n", 19) +
		"S [SKIPPED] [0.002 seconds]\n• [FAILED] [1.364 seconds]\n" + strings.Repeat("long ", 1<<19)
	err := suite{progress: &progress}.follow(strings.NewReader(out))
	if err == nil {
		t.Error("a line beyond all bounds is not reported")
	}
	if diff := cmp.Diff("    10 specs done\n    20 specs done\n", progress.String()); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}
