package criserver

import (
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	r := newRates()
	began := time.Now()
	for i, look := range []struct {
		after, used time.Duration
		rate        uint64
		known       bool
	}{
		{0, 5 * time.Second, 0, false},                          // nothing to compare with
		{rateWindow / 2, 6 * time.Second, 0, false},             // too soon to tell
		{2 * time.Second, 8 * time.Second, 1_500_000_000, true}, // since the first look
		{2*time.Second + 1, 9 * time.Second, 1_500_000_000, true},
		{4 * time.Second, 8 * time.Second, 0, true},
		{6 * time.Second, time.Second, 0, false}, // another process counts
		{8 * time.Second, 2 * time.Second, 500_000_000, true},
	} {
		if rate, known := r.observe("vm", began.Add(look.after), look.used); rate != look.rate || known != look.known {
			t.Errorf("look %d: %d, %t, want %d, %t", i, rate, known, look.rate, look.known)
		}
	}
	r.forget("vm")
	if _, known := r.observe("vm", began.Add(time.Hour), time.Hour); known {
		t.Error("what was forgotten is still known")
	}
}
