package libvirttools

import (
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// loopRetry is the pause after a failed round of the event loop.
const loopRetry = 100 * time.Millisecond

// loop is libvirt's event loop. It is package state because libvirt's library has
// exactly one per process.
var loop eventLoop

// eventLoop runs libvirt's loop in a goroutine while somebody needs it.
type eventLoop struct {
	mu         sync.Mutex // guards the rest
	registered bool
	users      int
	stop       chan struct{} // closed to end the goroutine
	done       chan struct{} // closed by the goroutine at its end
}

// enter starts the loop for its first user. Each enter needs a leave.
func (l *eventLoop) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.registered {
		if err := libvirt.EventRegisterDefaultImpl(); err != nil {
			return fmt.Errorf("set up libvirt's event loop: %w", err)
		}
		l.registered = true
	}
	if l.users == 0 {
		l.stop, l.done = make(chan struct{}), make(chan struct{})
		go runEventLoop(l.stop, l.done)
	}
	l.users++
	return nil
}

// leave ends the loop after its last user.
func (l *eventLoop) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	if l.users > 0 {
		return
	}
	close(l.stop)
	// The loop sleeps until something happens; a timer that is due wakes it.
	timer, err := libvirt.EventAddTimeout(0, func(int) {})
	<-l.done
	if err == nil {
		_ = libvirt.EventRemoveTimeout(timer)
	}
}

func runEventLoop(stop <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if libvirt.EventRunDefaultImpl() != nil {
			// It concerns this round; but should it stay, it must not cost a CPU.
			select {
			case <-stop:
				return
			case <-time.After(loopRetry):
			}
		}
	}
}
