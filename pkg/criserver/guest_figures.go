package criserver

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

const (
	// figuresPatience bounds the wait for figures that only QEMU and the guest know.
	// criproxy gives a list half a second before it takes the whole runtime for late.
	figuresPatience = 300 * time.Millisecond
	// figuresLimit is when a QEMU that does not answer is given up.
	figuresLimit = 10 * time.Second
	// figuresAge is how old a figure may be that is shown in place of a late one.
	figuresAge = time.Minute
	// figuresAtOnce is how many QEMUs are asked at a time.
	figuresAtOnce = 8
)

// figure is what a QEMU told, and when.
type figure struct {
	libvirttools.Stats
	at time.Time
}

// guestFigures asks QEMUs for what only they and their guests know. One that is late
// holds nobody up: its answer counts at the next look.
type guestFigures struct {
	ask    func(ctx context.Context, domain string) (libvirttools.Stats, error)
	logger *slog.Logger

	running sync.WaitGroup // questions under way
	slots   chan struct{}  // held by those that are being answered

	mu    sync.Mutex // guards known and asked
	known map[string]figure
	asked map[string]question
}

// question is one that is under way; answered is closed when it ends.
type question struct {
	answered chan struct{}
	cancel   context.CancelFunc
}

func newGuestFigures(ask func(context.Context, string) (libvirttools.Stats, error), logger *slog.Logger) *guestFigures {
	return &guestFigures{
		ask: ask, logger: logger, slots: make(chan struct{}, figuresAtOnce),
		known: map[string]figure{}, asked: map[string]question{},
	}
}

// look returns the figures of VMs, by container ID, as far as they are known soon. The
// VMs are all that there are: others are forgotten.
func (g *guestFigures) look(ctx context.Context, vms []container) map[string]figure {
	var pending []question
	for _, vm := range vms {
		pending = append(pending, g.question(ctx, vm.ID, vm.DomainUUID))
	}
	ctx, cancel := context.WithTimeout(ctx, figuresPatience)
	defer cancel()
	for _, q := range pending {
		select {
		case <-q.answered:
		case <-ctx.Done():
		}
	}
	return g.recent(vms)
}

// question asks, unless the last question has not been answered yet.
func (g *guestFigures) question(ctx context.Context, id, domain string) question {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q, underWay := g.asked[id]; underWay {
		return q
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), figuresLimit)
	q := question{answered: make(chan struct{}), cancel: cancel}
	g.asked[id] = q
	g.running.Go(func() {
		defer cancel()
		stats, err := g.slotted(ctx, domain)
		if err != nil {
			g.logger.DebugContext(ctx, "QEMU tells no figures", "container", id, "err", err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if delete(g.asked, id); err == nil {
			g.known[id] = figure{Stats: stats, at: time.Now()}
		}
		close(q.answered)
	})
	return q
}

func (g *guestFigures) slotted(ctx context.Context, domain string) (libvirttools.Stats, error) {
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
		return g.ask(ctx, domain)
	case <-ctx.Done():
		return libvirttools.Stats{}, ctx.Err()
	}
}

// recent returns what is known and not too old, and forgets the rest.
func (g *guestFigures) recent(vms []container) map[string]figure {
	g.mu.Lock()
	defer g.mu.Unlock()
	fresh := map[string]figure{}
	for _, vm := range vms {
		if f, there := g.known[vm.ID]; there && time.Since(f.at) < figuresAge {
			fresh[vm.ID] = f
		}
	}
	g.known = fresh
	return maps.Clone(fresh)
}

// close ends the questions under way.
func (g *guestFigures) close() {
	g.mu.Lock()
	for _, q := range g.asked {
		q.cancel()
	}
	g.mu.Unlock()
	g.running.Wait()
}
