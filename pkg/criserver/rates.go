package criserver

import (
	"sync"
	"time"
)

// rateWindow is the shortest time over which a rate is computed: callers that look
// more often get the last one.
const rateWindow = time.Second

// rates computes how fast CPU time is used, from one look at a counter to the next.
type rates struct {
	mu    sync.Mutex // guards known
	known map[string]sample
}

type sample struct {
	at   time.Time
	used time.Duration
	rate uint64 // nanoseconds per second since the sample before
	any  bool   // there was one before
}

func newRates() *rates { return &rates{known: map[string]sample{}} }

// observe notes a counter's value and returns its rate, in nanoseconds per second;
// known is false at the first look and after the counter began anew.
func (r *rates) observe(id string, at time.Time, used time.Duration) (rate uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, seen := r.known[id]
	passed := at.Sub(last.at)
	switch {
	case !seen || used < last.used:
		r.known[id] = sample{at: at, used: used}
		return 0, false
	case passed < rateWindow:
		return last.rate, last.any
	}
	next := sample{at: at, used: used, rate: uint64(float64(used-last.used) / passed.Seconds()), any: true}
	r.known[id] = next
	return next.rate, true
}

// forget is called when what has that ID is gone.
func (r *rates) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, id)
}
