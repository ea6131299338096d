package criserver

import (
	"slices"
	"sync/atomic"
	"testing"
)

func TestReadAllKeepsTheOrderAndLeavesOutNil(t *testing.T) {
	const many = 1000
	var calls atomic.Int64
	var read []func() *int
	var want []int
	for i := range many {
		odd := i%7 == 3
		if !odd {
			want = append(want, i)
		}
		read = append(read, func() *int {
			calls.Add(1)
			if odd {
				return nil
			}
			return &i
		})
	}
	var got []int
	for _, value := range readAll(read) {
		got = append(got, *value)
	}
	if !slices.Equal(got, want) || calls.Load() != many {
		t.Errorf("%d calls returned %v, want %v", calls.Load(), got, want)
	}
	if got := readAll[int](nil); len(got) != 0 {
		t.Errorf("of nothing came %v", got)
	}
}
