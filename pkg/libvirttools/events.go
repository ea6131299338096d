package libvirttools

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"
)

const (
	// eventQueue is how many events wait for a slow receiver before they are
	// dropped in favour of one Resync.
	eventQueue = 1024

	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Kind of an Event.
type Kind string

// The kinds.
const (
	// KindResync says that events may have been missed: look at every domain. It
	// comes first, again after each new connection to libvirtd, and when a libvirtd
	// that has just started has taken up domains.
	KindResync    Kind = "resync"
	KindDefined   Kind = "defined"
	KindUndefined Kind = "undefined"
	KindStarted   Kind = "started"
	KindPaused    Kind = "paused"
	KindResumed   Kind = "resumed"
	KindStopping  Kind = "stopping" // the guest has powered off
	KindStopped   Kind = "stopped"  // QEMU has ended; Reason says why
	KindCrashed   Kind = "crashed"  // the guest's kernel panicked
	KindSuspended Kind = "suspended"
	KindRebooted  Kind = "rebooted" // by the guest itself
)

// Event is something that happened to a domain, perhaps a foreign one: receivers
// ignore UUIDs that they do not know.
type Event struct {
	Kind   Kind
	UUID   string // empty for KindResync
	Reason Reason
	At     time.Time // when this process learnt it
}

// Watch calls fn for everything that happens to domains, one call at a time and in
// order, until ctx ends, whose error it returns. It survives losses of libvirtd.
func (c *Client) Watch(ctx context.Context, fn func(Event)) error {
	if err := c.prepare(); err != nil {
		return err
	}
	retry := firstRetry
	for {
		lost, err := c.watchOnce(ctx, fn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if lost {
			retry = firstRetry
			c.log.Warn("lost the connection to libvirt", "uri", c.looks.uri)
		} else {
			c.log.Warn("cannot watch domains", "uri", c.looks.uri, "err", err, "retry", retry)
		}
		if err := pause(ctx, retry); err != nil {
			return err
		}
		retry = min(2*retry, lastRetry)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// watchOnce delivers the events of one connection; lost says that it had one.
func (c *Client) watchOnce(ctx context.Context, fn func(Event)) (lost bool, err error) {
	s, err := c.looks.acquire(ctx)
	if err != nil {
		return false, err
	}
	sub := &subscription{events: make(chan Event, eventQueue)}
	ctx, leave := context.WithCancel(ctx)
	var following sync.WaitGroup
	// All three may wait for libvirtd, hence the goroutines.
	defer c.looks.wg.Go(func() {
		leave()
		sub.cancel(s.conn) // after register, if that has not returned yet
		following.Wait()
		c.looks.release(s)
	})
	registered := make(chan error, 1)
	var busy map[string]bool // before the Resync, for who looks then may still see what ends unheard
	c.looks.wg.Go(func() {
		err := sub.register(s.conn)
		if err == nil {
			busy = busyDomains(s.conn)
		}
		registered <- err
	})
	select {
	case err := <-registered:
		if err != nil {
			return false, c.looks.explain(err)
		}
	case <-ctx.Done():
		return false, ctx.Err()
	}
	// Only now, so that nothing can happen between the receiver's look and the
	// first event.
	fn(Event{Kind: KindResync, At: time.Now()})
	following.Go(func() { sub.followTakeUp(ctx, s.conn, busy) })
	return true, sub.deliver(ctx, s.lost, fn)
}

// subscription is a set of callbacks with libvirt. They run in the event loop's
// thread and must not block there.
type subscription struct {
	events  chan Event
	dropped atomic.Bool // events did not fit

	mu        sync.Mutex // guards the rest
	ids       []int
	cancelled bool
}

func (s *subscription) register(conn *libvirt.Connect) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancelled {
		return context.Canceled
	}
	lifecycle, err := conn.DomainEventLifecycleRegister(nil,
		func(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
			kind, reason := toEvent(*e)
			s.push(dom, kind, reason)
		})
	if err != nil {
		return err
	}
	s.ids = append(s.ids, lifecycle)
	reboot, err := conn.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain) {
		s.push(dom, KindRebooted, ReasonUnknown)
	})
	if err != nil {
		return err
	}
	s.ids = append(s.ids, reboot)
	return nil
}

// cancel takes the callbacks back, now or when they come to be.
func (s *subscription) cancel(conn *libvirt.Connect) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelled = true
	for _, id := range s.ids {
		_ = conn.DomainEventDeregister(id) // fails for a broken connection, after its local part
	}
	s.ids = nil
}

// push queues an event about a domain without waiting.
func (s *subscription) push(dom *libvirt.Domain, kind Kind, reason Reason) {
	uuid, err := dom.GetUUIDString() // asks nobody
	if kind == "" || err != nil {
		return
	}
	s.queue(Event{Kind: kind, UUID: uuid, Reason: reason, At: time.Now()})
}

func (s *subscription) queue(e Event) {
	select {
	case s.events <- e:
	default:
		s.dropped.Store(true)
	}
}

// deliver hands on events until the connection is lost, which is no error.
func (s *subscription) deliver(ctx context.Context, lost <-chan struct{}, fn func(Event)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-s.events:
			fn(e)
			if len(s.events) == 0 && s.dropped.Swap(false) {
				fn(Event{Kind: KindResync, At: time.Now()})
			}
		case <-lost:
			s.drain(fn)
			return nil
		}
	}
}

// drain hands on what had arrived before the connection was lost.
func (s *subscription) drain(fn func(Event)) {
	for {
		select {
		case e := <-s.events:
			fn(e)
		default:
			return
		}
	}
}

var kinds = map[libvirt.DomainEventType]Kind{
	libvirt.DOMAIN_EVENT_DEFINED:     KindDefined,
	libvirt.DOMAIN_EVENT_UNDEFINED:   KindUndefined,
	libvirt.DOMAIN_EVENT_STARTED:     KindStarted,
	libvirt.DOMAIN_EVENT_SUSPENDED:   KindPaused,
	libvirt.DOMAIN_EVENT_RESUMED:     KindResumed,
	libvirt.DOMAIN_EVENT_SHUTDOWN:    KindStopping,
	libvirt.DOMAIN_EVENT_STOPPED:     KindStopped,
	libvirt.DOMAIN_EVENT_CRASHED:     KindCrashed,
	libvirt.DOMAIN_EVENT_PMSUSPENDED: KindSuspended,
}

var stoppedReasons = map[libvirt.DomainEventStoppedDetailType]Reason{
	libvirt.DOMAIN_EVENT_STOPPED_SHUTDOWN:  ReasonShutdown,
	libvirt.DOMAIN_EVENT_STOPPED_DESTROYED: ReasonDestroyed,
	libvirt.DOMAIN_EVENT_STOPPED_CRASHED:   ReasonCrashed,
	libvirt.DOMAIN_EVENT_STOPPED_MIGRATED:  ReasonMigrated,
	libvirt.DOMAIN_EVENT_STOPPED_SAVED:     ReasonSaved,
	// QEMU went away by itself. A start that fails causes no event.
	libvirt.DOMAIN_EVENT_STOPPED_FAILED:        ReasonCrashed,
	libvirt.DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: ReasonSnapshot,
}

var pausedEventReasons = map[libvirt.DomainEventSuspendedDetailType]Reason{
	libvirt.DOMAIN_EVENT_SUSPENDED_PAUSED:   ReasonUser,
	libvirt.DOMAIN_EVENT_SUSPENDED_IOERROR:  ReasonIOError,
	libvirt.DOMAIN_EVENT_SUSPENDED_WATCHDOG: ReasonWatchdog,
	libvirt.DOMAIN_EVENT_SUSPENDED_MIGRATED: ReasonMigrated,
}

// toEvent translates libvirt's numbers; an unknown kind is empty.
func toEvent(e libvirt.DomainEventLifecycle) (Kind, Reason) {
	kind, reason := kinds[e.Event], Reason("")
	switch e.Event {
	case libvirt.DOMAIN_EVENT_STOPPED:
		reason = stoppedReasons[libvirt.DomainEventStoppedDetailType(e.Detail)]
	case libvirt.DOMAIN_EVENT_SUSPENDED:
		reason = pausedEventReasons[libvirt.DomainEventSuspendedDetailType(e.Detail)]
	case libvirt.DOMAIN_EVENT_CRASHED:
		reason = ReasonPanicked
	}
	if reason == "" {
		reason = ReasonUnknown
	}
	return kind, reason
}
