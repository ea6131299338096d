package accel

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// budget is for all attempts together.
	budget = 1500 * time.Millisecond
	// kickEvery and kickFor are for a KVM that does not return by itself.
	kickEvery = 10 * time.Millisecond
	kickFor   = 300 * time.Millisecond

	// attempts are made while times are over the limits; a guest that fails is not
	// given another chance.
	attempts = 3

	// maxSlowdown is how many times the native time a guest's arithmetic may take.
	// With KVM it is 1, and a little more for a part that is as short as this one.
	maxSlowdown = 20
	// maxTrapCost is how many native system calls an interrupt, system call, page
	// fault or address space switch in the guest may cost on average. On bare metal
	// it is about 1; with KVM inside a VM inside a VM, some tens.
	maxTrapCost = 200
)

// probeWork takes a tenth of a millisecond natively.
var probeWork = work{multiplications: 50_000, rounds: 500}

// traps is the number of interrupts, system calls, page faults and switches that
// the payload has with a number of rounds.
func (w work) traps() uint64 {
	const faults = 2 * 255
	return w.rounds + w.rounds + faults + 2*w.rounds
}

// finding is what is known about a KVM that works.
type finding struct {
	summary string
	disable []string // CPU features
}

// examine tells whether KVM works; the error is the reason why not, without a class.
func examine(ctx context.Context, o Options) (finding, error) {
	kvm, err := openKVM(o.Device)
	if err != nil {
		return finding{}, err
	}
	defer func() { _ = unix.Close(kvm) }() // its machines have descriptors of their own
	p := &prover{newVM: func() (*vm, error) { return newVM(kvm, probeWork) }}
	found, err := p.proveInBudget(ctx)
	if err != nil {
		return finding{}, err
	}
	if o.User != nil {
		err = mayOpen(o.Device, *o.User)
	}
	return found, err
}

// prover runs payloads on a thread of its own.
type prover struct {
	newVM   func() (*vm, error)
	current atomic.Pointer[vm] // that runs or is about to
	stopped atomic.Bool
}

// proveInBudget runs prove and ends it when time is up.
func (p *prover) proveInBudget(ctx context.Context) (finding, error) {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	type verdict struct {
		found finding
		err   error
	}
	verdicts := make(chan verdict, 1)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine: a signal of
		// kick must not come late and hit somebody else's system call.
		runtime.LockOSThread()
		found, err := p.prove()
		verdicts <- verdict{found, err}
	}()
	select {
	case v := <-verdicts:
		return v.found, v.err
	case <-ctx.Done():
	}
	tick := time.NewTicker(kickEvery)
	defer tick.Stop()
	patience := time.NewTimer(kickFor)
	defer patience.Stop()
	for {
		p.stop()
		select {
		case v := <-verdicts:
			return v.found, v.err
		case <-tick.C:
		case <-patience.C:
			return finding{}, errors.New("a guest under KVM hangs and cannot be interrupted")
		}
	}
}

// stop ends what prove does; repeat it until prove has returned.
func (p *prover) stop() {
	p.stopped.Store(true)
	if v := p.current.Load(); v != nil {
		v.kick()
	}
}

func (p *prover) prove() (finding, error) {
	for tries := 1; ; tries++ {
		m, err := p.measure()
		if err != nil {
			return finding{}, err
		}
		problem := m.judge()
		if problem == nil {
			return finding{
				summary: fmt.Sprintf("a guest's calculations take %.1f times and its traps %.1f times as long as natively",
					m.slowdown, m.trapCost),
				disable: m.disable,
			}, nil
		}
		if m.failure != nil || tries == attempts || p.stopped.Load() {
			return finding{}, problem
		}
	}
}

// measurement is one run of the payload compared with its native counterparts.
type measurement struct {
	slowdown float64 // of arithmetic; 0 if the guest did not get that far
	trapCost float64 // in native system calls; 0 likewise
	failure  error   // what ended the guest before its end
	disable  []string
}

// judge returns what is wrong, as the beginning of a sentence.
func (m measurement) judge() error {
	slow := fmt.Errorf("calculations in a guest's kernel take %.0f times as long under KVM as natively", m.slowdown)
	switch {
	case m.slowdown > maxSlowdown && m.failure != nil:
		return fmt.Errorf("%w, and then %w", slow, m.failure)
	case m.slowdown > maxSlowdown:
		return slow
	case m.failure != nil:
		return m.failure
	case m.trapCost > maxTrapCost:
		return fmt.Errorf("an interrupt, system call or page fault in a guest costs as much under KVM as %.0f system calls natively", m.trapCost)
	default:
		return nil
	}
}

// measure runs the payload once.
func (p *prover) measure() (measurement, error) {
	arithmetic, call, err := nativeTimes()
	if err != nil {
		return measurement{}, err
	}
	v, err := p.newVM()
	if err != nil {
		return measurement{}, err
	}
	p.current.Store(v)
	defer func() {
		p.current.Store(nil)
		_ = v.release()
	}()
	disable := v.unsettableFeatures()
	times, failure := v.run()
	return measurement{
		slowdown: ratio(times['C'], arithmetic),
		trapCost: ratio(times['I']+times['S']+times['P']+times['R'], call) / float64(probeWork.traps()),
		failure:  failure,
		disable:  disable,
	}, nil
}

// nativeTimes measures the payload's arithmetic and one system call on this thread.
func nativeTimes() (arithmetic, call time.Duration, err error) {
	before, err := threadTime()
	if err != nil {
		return 0, 0, err
	}
	result := probeWork.multiply()
	between, err := threadTime()
	if err != nil {
		return 0, 0, err
	}
	const calls = 1000
	for range calls {
		_ = unix.Getppid()
	}
	after, err := threadTime()
	// The result must be of use, or else the compiler need not compute it.
	runtime.KeepAlive(result)
	return between - before, (after - between) / calls, err
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(max(b, 1)) }
