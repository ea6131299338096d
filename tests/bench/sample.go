package main

import (
	"math"
	"slices"
	"time"
)

// pair holds the durations of one call on both sides; equal indexes were
// measured one right after the other.
type pair struct {
	base, ours []time.Duration
}

// blocks is how many consecutive parts a series is cut into to see its spread.
const blocks = 10

// comparison is one statistic of a pair.
type comparison struct {
	Base  float64 `json:"base_ms"`
	Ours  float64 `json:"ours_ms"`
	Ratio float64 `json:"ratio"`
	// Ratios of the blocks, smallest and largest.
	Low     float64 `json:"ratio_low"`
	High    float64 `json:"ratio_high"`
	Samples int     `json:"samples"`
}

// at compares a quantile, 0.5 for the median.
func (p pair) at(quantile float64) comparison {
	c := comparison{
		Base: milliseconds(quantileOf(p.base, quantile)), Ours: milliseconds(quantileOf(p.ours, quantile)),
		Samples: len(p.base), Low: math.Inf(1), High: math.Inf(-1),
	}
	c.Ratio = c.Ours / c.Base
	n := min(blocks, len(p.base))
	for i := range n {
		from, to := i*len(p.base)/n, (i+1)*len(p.base)/n
		ratio := float64(quantileOf(p.ours[from:to], quantile)) / float64(quantileOf(p.base[from:to], quantile))
		c.Low, c.High = min(c.Low, ratio), max(c.High, ratio)
	}
	return c
}

// byDifference compares medians by the median of the differences within a round. Where
// what is measured varies far more than what the sides differ by, this still tells.
func (p pair) byDifference() comparison {
	c := comparison{
		Base: milliseconds(quantileOf(p.base, 0.5)), Ours: milliseconds(quantileOf(p.ours, 0.5)),
		Samples: len(p.base), Low: math.Inf(1), High: math.Inf(-1), Ratio: p.raised(),
	}
	n := min(blocks, len(p.base))
	for i := range n {
		from, to := i*len(p.base)/n, (i+1)*len(p.base)/n
		ratio := pair{p.base[from:to], p.ours[from:to]}.raised()
		c.Low, c.High = min(c.Low, ratio), max(c.High, ratio)
	}
	return c
}

// raised is what the base becomes by the median difference, as a ratio.
func (p pair) raised() float64 {
	return 1 + float64(quantileOf(p.differences(), 0.5))/float64(quantileOf(p.base, 0.5))
}

// differences are ours minus base, sample by sample.
func (p pair) differences() []time.Duration {
	d := make([]time.Duration, len(p.base))
	for i := range d {
		d[i] = p.ours[i] - p.base[i]
	}
	return d
}

// quantileOf is the smallest sample that at least this share of all reach not
// beyond; 0 without samples.
func quantileOf(samples []time.Duration, quantile float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	index := int(math.Ceil(quantile*float64(len(sorted)))) - 1
	return sorted[min(max(index, 0), len(sorted)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// alternate calls base and ours in turn, so that what else the machine does
// meets both, and so that neither always comes first.
func alternate(warmUp, n int, base, ours func() error) (pair, error) {
	took, err := inTurn(warmUp, n, base, ours)
	return pair{took[0], took[1]}, err
}

// inTurn makes every call once in each round, and returns how long each took. The
// first rounds are not recorded.
func inTurn(warmUp, n int, calls ...func() error) ([][]time.Duration, error) {
	took := make([][]time.Duration, len(calls))
	for round := range warmUp + n {
		for place := range calls {
			i := turn(round, place, len(calls))
			t, err := timed(calls[i])
			if err != nil {
				return took, err
			}
			if round >= warmUp {
				took[i] = append(took[i], t)
			}
		}
	}
	return took, nil
}

// turn is which of n sides comes at a place of a round: over the rounds each comes
// first, second and last equally often, and after every other.
func turn(round, place, n int) int {
	if round/n%2 == 1 {
		place = n - 1 - place
	}
	return (round + place) % n
}

func timed(call func() error) (time.Duration, error) {
	started := time.Now()
	err := call()
	return time.Since(started), err
}
