package libvirttools

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"
)

// A receiver that was too slow must learn that it missed something, after what it
// did not miss.
func TestDroppedEventsEndInResync(t *testing.T) {
	t.Parallel()
	s := &subscription{events: make(chan Event, 2)}
	for _, id := range []string{"a", "b", "c"} {
		s.queue(Event{Kind: KindStarted, UUID: id})
	}
	var got []string
	ctx, cancel := context.WithCancel(t.Context())
	err := s.deliver(ctx, nil, func(e Event) {
		got = append(got, string(e.Kind)+e.UUID)
		if e.Kind == KindResync {
			cancel()
		}
	})
	if diff := cmp.Diff([]string{"starteda", "startedb", "resync"}, got); diff != "" || err == nil {
		t.Errorf("deliver ended with %v after (-want +got):\n%s", err, diff)
	}
}

// What arrived before the connection broke is not lost with it.
func TestLossOfConnectionDeliversQueuedEvents(t *testing.T) {
	t.Parallel()
	s := &subscription{events: make(chan Event, 2)}
	s.queue(Event{Kind: KindStopped, UUID: "a"})
	lost := make(chan struct{})
	close(lost)
	var got int
	if err := s.deliver(t.Context(), lost, func(Event) { got++ }); err != nil || got != 1 {
		t.Errorf("%d events, %v; want 1 and no error", got, err)
	}
}

func TestToState(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		state  libvirt.DomainState
		why    int
		want   State
		active bool
	}{
		{libvirt.DOMAIN_RUNNING, int(libvirt.DOMAIN_RUNNING_BOOTED), State{PhaseRunning, ReasonBooted}, true},
		{libvirt.DOMAIN_PAUSED, int(libvirt.DOMAIN_PAUSED_IOERROR), State{PhasePaused, ReasonIOError}, true},
		{libvirt.DOMAIN_SHUTOFF, int(libvirt.DOMAIN_SHUTOFF_CRASHED), State{PhaseShutOff, ReasonCrashed}, false},
		{libvirt.DOMAIN_SHUTOFF, 999, State{PhaseShutOff, ReasonUnknown}, false},
		{libvirt.DOMAIN_SHUTDOWN, 0, State{PhaseStopping, ReasonShutdown}, true},
		{libvirt.DOMAIN_NOSTATE, 0, State{PhaseUnknown, ReasonUnknown}, false},
		{999, 0, State{PhaseUnknown, ReasonUnknown}, false},
	} {
		if got := toState(test.state, test.why); got != test.want || got.Active() != test.active {
			t.Errorf("toState(%d, %d) = %+v, active %v; want %+v, %v", test.state, test.why, got, got.Active(), test.want, test.active)
		}
	}
}
