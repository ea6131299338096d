package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestADifferenceIsAPassOnOneSideOnly(t *testing.T) {
	direct := []spec{
		{Name: "a", State: "passed"},
		{Name: "b", State: "passed"},
		{Name: "c", State: "failed", Reason: "no such image"},
		{Name: "d", State: "skipped", Reason: "no AppArmor"},
		{Name: "e", State: "passed"},
	}
	proxy := []spec{
		{Name: "d", State: "passed"},
		{Name: "c", State: "panicked"},
		{Name: "b", State: "failed", Reason: "too slow"},
		{Name: "a", State: "passed"},
		{Name: "f", State: "passed"},
	}
	want := []comparison{
		{Name: "b", Direct: "passed", Proxy: "failed", Why: "too slow"},
		{Name: "d", Direct: "skipped", DirectWhy: "no AppArmor", Proxy: "passed"},
		{Name: "e", Direct: "passed", Proxy: "not run"},
		{Name: "f", Direct: "not run", Proxy: "passed"},
	}
	if diff := cmp.Diff(want, different(compare(direct, proxy))); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

func TestReport(t *testing.T) {
	direct := []spec{{Name: "a | b", State: "passed"}, {Name: "c", State: "timedout"}, {Name: "d", State: "skipped"}}
	proxy := []spec{{Name: "a | b", State: "passed"}, {Name: "c", State: "failed"}, {Name: "d", State: "skipped"}}
	runs := []namedRun{{"one", direct, time.Second}, {"two", proxy, 2 * time.Second}}
	want := `Heading

| critest against | specs | passed | failed | skipped by critest | seconds |
|---|---|---|---|---|---|
| one | 3 | 1 | 1 | 1 | 1 |
| two | 3 | 1 | 1 | 1 | 2 |

Specs that pass on one side only: 0.

| spec | containerd | through criproxy |
|---|---|---|
| a \| b | passed | passed |
| c | timedout | failed |
| d | skipped | skipped |
`
	if diff := cmp.Diff(want, markdown("Heading", runs, compare(direct, proxy))); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}
