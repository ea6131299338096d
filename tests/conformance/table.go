package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

const passed = "passed"

// comparison is one spec with its state in both runs; absent is "not run".
type comparison struct {
	Name           string
	Direct, Proxy  string
	DirectWhy, Why string
}

// compare pairs the specs of both runs by name.
func compare(direct, proxy []spec) []comparison {
	const absent = "not run"
	rows := map[string]*comparison{}
	for _, s := range direct {
		rows[s.Name] = &comparison{Name: s.Name, Direct: s.State, DirectWhy: s.Reason, Proxy: absent}
	}
	for _, s := range proxy {
		row := rows[s.Name]
		if row == nil {
			row = &comparison{Name: s.Name, Direct: absent}
			rows[s.Name] = row
		}
		row.Proxy, row.Why = s.State, s.Reason
	}
	var all []comparison
	for _, row := range rows {
		all = append(all, *row)
	}
	slices.SortFunc(all, func(a, b comparison) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// different are the specs that pass on one side only.
func different(rows []comparison) []comparison {
	return slices.DeleteFunc(slices.Clone(rows), func(c comparison) bool {
		return (c.Direct == passed) == (c.Proxy == passed)
	})
}

// count says how many specs have each state.
func count(specs []spec) map[string]int {
	counts := map[string]int{}
	for _, s := range specs {
		counts[s.State]++
	}
	return counts
}

// summary is one table row for each run.
func summary(runs []namedRun) string {
	var b strings.Builder
	b.WriteString("| critest against | specs | passed | failed | skipped by critest | seconds |\n|---|---|---|---|---|---|\n")
	for _, r := range runs {
		counts := count(r.specs)
		bad := len(r.specs) - counts[passed] - counts["skipped"]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %.0f |\n",
			r.name, len(r.specs), counts[passed], bad, counts["skipped"], r.took.Seconds())
	}
	return b.String()
}

// markdown is the report for docs/conformance.md.
func markdown(heading string, runs []namedRun, rows []comparison) string {
	var b strings.Builder
	b.WriteString(heading + "\n\n" + summary(runs) + "\n")
	fmt.Fprintf(&b, "Specs that pass on one side only: %d.\n\n", len(different(rows)))
	b.WriteString("| spec | containerd | through criproxy |\n|---|---|---|\n")
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.ReplaceAll(row.Name, "|", "\\|"), row.Direct, row.Proxy)
	}
	return b.String()
}
