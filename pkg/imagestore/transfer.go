package imagestore

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Transfer is the progress of a running download.
type Transfer struct {
	Name      string        // of the image, as the first caller gave it
	Source    string        // where it comes from, without secrets
	Done      int64         // bytes that are here, those of earlier attempts included
	Total     int64         // bytes, or -1 when the server does not say
	Rate      int64         // bytes a second since this attempt began
	Remaining time.Duration // at that rate; -1 when it cannot be told
	Started   time.Time
}

// transfer counts for one flight.
type transfer struct {
	name, source string
	started      time.Time
	fetched      prometheus.Counter // of all transfers
	resumed      atomic.Int64       // bytes that were here at the start
	done         atomic.Int64
	total        atomic.Int64
}

func (t *transfer) expect(have, total int64) {
	t.resumed.CompareAndSwap(-1, have)
	t.done.Store(have)
	t.total.Store(total)
}

func (t *transfer) add(n int) {
	t.done.Add(int64(n))
	t.fetched.Add(float64(n))
}

func (t *transfer) public(now time.Time) Transfer {
	p := Transfer{
		Name: t.name, Source: t.source, Started: t.started,
		Done: t.done.Load(), Total: t.total.Load(), Remaining: -1,
	}
	elapsed := now.Sub(t.started).Seconds()
	if fetched := p.Done - max(t.resumed.Load(), 0); elapsed > 0 && fetched > 0 {
		p.Rate = int64(float64(fetched) / elapsed)
	}
	if p.Rate > 0 && p.Total >= 0 {
		p.Remaining = time.Duration(float64(p.Total-p.Done) / float64(p.Rate) * float64(time.Second))
	}
	return p
}

// transfers is the set of running downloads.
type transfers struct {
	mu      sync.Mutex // guards running
	running map[*transfer]struct{}
}

func (ts *transfers) begin(name, source string, now time.Time, fetched prometheus.Counter) *transfer {
	t := &transfer{name: name, source: source, started: now, fetched: fetched}
	t.resumed.Store(-1)
	t.total.Store(-1)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.running == nil {
		ts.running = map[*transfer]struct{}{}
	}
	ts.running[t] = struct{}{}
	return t
}

func (ts *transfers) end(t *transfer) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.running, t)
}

// tell logs how far a download is.
func (s *Store) tell(t Transfer) {
	s.log.Info("image download", "image", t.Name, "source", t.Source,
		"done", t.Done, "total", t.Total, "rate", t.Rate, "remaining", t.Remaining.Round(time.Second))
}

// Progress tells of all running downloads, the oldest first.
func (s *Store) Progress() []Transfer {
	s.transfers.mu.Lock()
	defer s.transfers.mu.Unlock()
	now := s.now()
	list := make([]Transfer, 0, len(s.transfers.running))
	for t := range s.transfers.running {
		list = append(list, t.public(now))
	}
	slices.SortFunc(list, func(a, b Transfer) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Name, b.Name))
	})
	return list
}
