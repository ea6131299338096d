package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuantiles(t *testing.T) {
	samples := []time.Duration{5, 1, 4, 2, 3}
	for quantile, want := range map[float64]time.Duration{0: 1, 0.2: 1, 0.21: 2, 0.5: 3, 0.8: 4, 0.99: 5, 1: 5} {
		if got := quantileOf(samples, quantile); got != want {
			t.Errorf("quantile %v is %d, want %d", quantile, got, want)
		}
	}
	if !slices.Equal(samples, []time.Duration{5, 1, 4, 2, 3}) {
		t.Error("the samples' order was changed")
	}
	if got := quantileOf(nil, 0.5); got != 0 {
		t.Errorf("the median of nothing is %d", got)
	}
}

func TestComparison(t *testing.T) {
	p := pair{}
	for i := range 2 * blocks {
		p.base = append(p.base, 10*time.Millisecond)
		p.ours = append(p.ours, time.Duration(10+i/2)*time.Millisecond) // a block's samples are equal
	}
	want := comparison{Base: 10, Ours: 14, Ratio: 1.4, Low: 1, High: 1.9, Samples: 2 * blocks}
	if diff := cmp.Diff(want, p.at(0.5)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	few := pair{base: []time.Duration{2, 4}, ours: []time.Duration{4, 4}}.at(1)
	if few.Low != 1 || few.High != 2 {
		t.Errorf("fewer samples than blocks: ratios from %v to %v, want 1 to 2", few.Low, few.High)
	}
}

func TestSidesTakeTurnsAndWarmUpDoesNotCount(t *testing.T) {
	var order strings.Builder
	side := func(name string) func() error {
		return func() error {
			order.WriteString(name)
			return nil
		}
	}
	p, err := alternate(1, 3, side("b"), side("o"))
	if err != nil {
		t.Fatal(err)
	}
	if order.String() != "boobobbo" {
		t.Errorf("order is %s", order.String())
	}
	if len(p.base) != 3 || len(p.ours) != 3 {
		t.Errorf("%d and %d samples, want 3 of each", len(p.base), len(p.ours))
	}
	broken := errors.New("broken")
	for range 2 {
		if _, err := alternate(0, 2, side("b"), func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("a failed call gave %v", err)
		}
	}
}

// Of three sides, each comes first, second and last equally often, and after each other.
func TestThreeSidesTakeTurns(t *testing.T) {
	const sides, rounds = 3, 6
	places, pairs := map[[2]int]int{}, map[[2]int]int{}
	for round := range rounds {
		for place := range sides {
			side := turn(round, place, sides)
			places[[2]int{place, side}]++
			if place > 0 {
				pairs[[2]int{turn(round, place-1, sides), side}]++
			}
		}
	}
	if len(places) != sides*sides || len(pairs) != sides*(sides-1) {
		t.Errorf("sides by place: %v, sides after each other: %v", places, pairs)
	}
	for _, times := range places {
		if times != rounds/sides {
			t.Errorf("sides by place: %v", places)
		}
	}
	for _, times := range pairs {
		if times != 2 {
			t.Errorf("sides after each other: %v", pairs)
		}
	}
}

// Two sides that vary together by half are told apart to a hundredth.
func TestDifferencesSeeThroughWhatBothSidesHaveInCommon(t *testing.T) {
	var p pair
	for i := range 100 {
		common := time.Duration(100+i%50) * time.Millisecond
		p.base, p.ours = append(p.base, common), append(p.ours, common+time.Millisecond)
	}
	c := p.byDifference()
	if c.Base != 124 || c.Ours != 125 || c.Samples != 100 {
		t.Errorf("medians are %v and %v of %d samples, want 124 and 125 of 100", c.Base, c.Ours, c.Samples)
	}
	if want := 1 + 1./124; c.Ratio != want || c.Low > want || c.High < want || c.High > 1.01 {
		t.Errorf("the ratio is %v, between %v and %v, want %v", c.Ratio, c.Low, c.High, want)
	}
}
