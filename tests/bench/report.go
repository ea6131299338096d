package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ambipod/ambipod/tests/page"
)

// row is one line of the report.
type row struct {
	What  string `json:"what"`
	Base  string `json:"base"`     // what it is compared with, and its figure
	Ours  string `json:"ours"`     // our figure
	Ratio string `json:"compared"` // ratio or difference
	// Spread is the smallest and largest ratio of the series' tenths, or the
	// middle half of the differences.
	Spread  string  `json:"spread"`
	Target  string  `json:"target"`        // from the issue; empty if there is none
	Met     *bool   `json:"met"`           // nil without a target
	Samples int     `json:"samples"`       // on each side
	Value   float64 `json:"value"`         // the number that the target is about
	Hop     string  `json:"hop,omitempty"` // the same through a relay that only copies bytes
}

// section is one group of measurements that belongs together.
type section struct {
	Name  string `json:"name"` // also the JSON file's name
	Title string `json:"title"`
	Base  string `json:"base"` // head of the column
	Ours  string `json:"ours"`
	Hop   string `json:"hop,omitempty"` // head of a column more; empty: none
	Rows  []row  `json:"rows"`
	plot  []byte // an SVG picture, or nothing
}

// plotName is the file of the section's picture, in the folder of the report.
func (s section) plotName() string { return "benchmarks-" + s.Name + ".svg" }

// limit is the largest value that meets a target; 0 is no target.
type limit float64

func (l limit) check(r row, value float64, format string) row {
	r.Value = value
	if l > 0 {
		met := value <= float64(l)
		r.Met, r.Target = &met, "≤ "+fmt.Sprintf(format, float64(l))
	}
	return r
}

// floor is the smallest value that meets a target.
type floor float64

func (f floor) check(r row, value float64, format string) row {
	met := value >= float64(f)
	r.Value, r.Met, r.Target = value, &met, "≥ "+fmt.Sprintf(format, float64(f))
	return r
}

// rateRow reports how fast ours is beside base, where each sample is that much work.
func rateRow(what string, p pair, work float64, unit string, least floor) row {
	c := p.at(0.5)
	const second = 1000 // ms
	r := row{
		What: what, Samples: c.Samples,
		Base:   fmt.Sprintf("%.0f %s", work*second/c.Base, unit),
		Ours:   fmt.Sprintf("%.0f %s", work*second/c.Ours, unit),
		Ratio:  fmt.Sprintf("%.2f×", 1/c.Ratio),
		Spread: fmt.Sprintf("%.2f–%.2f×", 1/c.High, 1/c.Low),
	}
	return least.check(r, 1/c.Ratio, "%.2f×")
}

// ratioRow reports a comparison as a ratio.
func ratioRow(what string, c comparison, most limit) row {
	r := row{
		What: what, Base: formatMS(c.Base), Ours: formatMS(c.Ours), Samples: c.Samples,
		Ratio:  fmt.Sprintf("%.2f×", c.Ratio),
		Spread: fmt.Sprintf("%.2f–%.2f×", c.Low, c.High),
	}
	return most.check(r, c.Ratio, "%.2f×")
}

// formatMS shows milliseconds with about three digits.
func formatMS(ms float64) string {
	switch {
	case ms < 1:
		return fmt.Sprintf("%.3f ms", ms)
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// markdown is the section as a table.
func (s section) markdown() string {
	var b strings.Builder
	line := func(cells ...string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	columns := func(base, ours, hop string) []string {
		if s.Hop == "" {
			return []string{base, ours}
		}
		return []string{base, ours, hop}
	}
	b.WriteString("### " + s.Title + "\n\n")
	head := slices.Concat([]string{"what"}, columns(s.Base, s.Ours, s.Hop), []string{"compared", "spread", "target", "met", "samples"})
	line(head...)
	b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
	for _, r := range s.Rows {
		met := ""
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "**no**"}[*r.Met]
		}
		line(slices.Concat([]string{r.What}, columns(r.Base, r.Ours, r.Hop), []string{r.Ratio, r.Spread, r.Target, met, strconv.Itoa(r.Samples)})...)
	}
	if len(s.plot) > 0 {
		fmt.Fprintf(&b, "\n![%s](%s)\n", s.Title, s.plotName())
	}
	return b.String() + "\n"
}

// document writes the section into the documentation.
func (s section) document(docs string, m machine) error {
	text := m.String() + ".\n\n" + s.markdown()
	if err := page.Replace(filepath.Join(docs, "benchmarks.md"), "written by make bench, "+s.Name, strings.TrimSuffix(text, "\n")); err != nil {
		return err
	}
	return s.savePlot(docs)
}

// savePlot writes the section's picture, if it has one.
func (s section) savePlot(dir string) error {
	if len(s.plot) == 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, s.plotName()), s.plot, 0o644); err != nil { //nolint:gosec // for people
		return fmt.Errorf("write plot of %s: %w", s.Name, err)
	}
	return nil
}

// save writes the section for machines.
func (s section) save(dir string, m machine) error {
	data, err := json.MarshalIndent(struct {
		Machine machine `json:"machine"`
		section
	}{m, s}, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", s.Name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, s.Name+".json"), append(data, '\n'), 0o644); err != nil { //nolint:gosec // for people
		return fmt.Errorf("write %s: %w", s.Name, err)
	}
	return s.savePlot(dir)
}
