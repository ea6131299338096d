package console

import (
	"sync"
	"time"
)

// alarm is a timer that can only be moved closer.
type alarm struct {
	timer *time.Timer
	at    time.Time // zero when not set
	fixed bool      // it cannot even be moved closer
}

func newAlarm() *alarm {
	a := &alarm{timer: time.NewTimer(0)}
	a.timer.Stop()
	return a
}

func (a *alarm) within(d time.Duration) {
	at := time.Now().Add(d)
	if a.at.IsZero() || (at.Before(a.at) && !a.fixed) {
		a.at = at
		a.timer.Reset(d)
	}
}

// notBefore sets the alarm to a time that stands until it has fired.
func (a *alarm) notBefore(d time.Duration) {
	a.fired()
	a.within(d)
	a.fixed = true
}

func (a *alarm) fired() { a.at, a.fixed = time.Time{}, false }

func (a *alarm) stop() { a.timer.Stop() }

// onceCloser closes a channel at most once.
type onceCloser struct{ once sync.Once }

func (o *onceCloser) close(c chan struct{}) { o.once.Do(func() { close(c) }) }
