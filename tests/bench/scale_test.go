package main

import (
	"strings"
	"testing"
)

var (
	fewPods  = load{pods: 10, list: 1, stats: 4, restart: 0.1, memory: 80}
	manyPods = load{pods: 100, list: 4, stats: 60, restart: 1.5, memory: 100}
)

func TestScaleRowsTellTargetsAndGrowth(t *testing.T) {
	want := []struct {
		ratio string
		met   bool
	}{
		{"4.00×", true},
		{"15.00×", false}, // 60 ms of statistics are too many
		{"15.00×", true},
		{"1.25×", true},
		{"0.40", true},
		{"1.50", false}, // worse than linear
		{"1.50", false},
		{"0.12", true},
	}
	rows := scaleRows([]load{fewPods, {pods: 50}, manyPods})
	if len(rows) != len(want) {
		t.Fatalf("%d rows, want %d", len(rows), len(want))
	}
	for i, r := range rows {
		if r.Ratio != want[i].ratio || *r.Met != want[i].met {
			t.Errorf("%s: %s, met %t; want %s, %t", r.What, r.Ratio, *r.Met, want[i].ratio, want[i].met)
		}
	}
}

func TestPlotGrowthShowsEachFigure(t *testing.T) {
	picture, err := plotGrowth([]load{fewPods, manyPods})
	if err != nil {
		t.Fatal(err)
	}
	text := string(picture)
	if !strings.Contains(text, "</svg>") {
		t.Errorf("not a whole SVG picture but %d bytes", len(picture))
	}
	for _, f := range figures() {
		if !strings.Contains(text, f.what) {
			t.Errorf("the picture does not say %q", f.what)
		}
	}
}
