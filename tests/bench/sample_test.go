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
	if order.String() != "boobboob" {
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
