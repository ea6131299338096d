//go:build faults

package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/page"
)

const (
	// shortSoak is how many lifecycles are gone through where nobody asks for more.
	shortSoak = 12
	// fullSoak is from how many on the documentation is told.
	fullSoak = 500
	// soakWorkers is how many pods are alive at a time, beside the witnesses.
	soakWorkers = 4
	// soakPodTime bounds one lifecycle. While every daemon in turn is down for seconds,
	// most of it is waiting.
	soakPodTime = 5 * time.Minute
	// supervision is how soon a dead daemon is started again, as systemd does.
	supervision = 200 * time.Millisecond
	// soakTail of the lifecycles, one of so many, are the last and go without kills
	// of daemons: a leak shows in a process that has lived for a while.
	soakTail = 5
)

// TestSoak brings VM pods up and down with random faults in between; SOAK_LIFECYCLES
// and SOAK_SEED say how many and which. Afterwards the node is as it was, in numbers.
func TestSoak(t *testing.T) {
	r := theRig(t)
	lifecycles, seed := soakSettings(t)
	t.Logf("%d lifecycles, SOAK_SEED=%d", lifecycles, seed)
	s := &soak{r: r, t: t, seed: seed, told: map[string]int{}}
	s.set, s.uninstall = r.installPlugin(t)
	defer s.uninstall()
	for _, daemon := range []string{node.CRIProxy, node.VMRuntime, node.Libvirtd} {
		if err := r.n.Kill(deadline(t), daemon); err != nil { // before as after: one that has found its VMs again
			t.Fatal(err)
		}
	}
	s.supervised(func() {})
	before := s.rest(standStill())
	snapshot, err := r.snapshot(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	kills := lifecycles - lifecycles/soakTail
	s.supervised(func() { s.live(0, kills, append(s.faultsOfAll(), s.faultsOfOne()...)) })
	s.live(kills, lifecycles, s.faultsOfOne())
	t.Logf("%d lifecycles took %s; faults: %v", lifecycles, time.Since(began).Round(time.Second), s.told)
	after := s.rest(func(seen counts) bool { return seen.sameAs(before) })
	ctx, cancel := context.WithTimeout(t.Context(), settleTime)
	defer cancel()
	if err := r.invariants(ctx, snapshot); err != nil {
		t.Error(err)
		r.broken = true
	}
	for _, what := range slices.Sorted(maps.Keys(before)) {
		if is := after[what]; is != before[what] {
			t.Errorf("%s: %d before, %d after", what, before[what], is)
		}
	}
	if lifecycles >= fullSoak && !t.Failed() {
		if err := s.document(lifecycles, time.Since(began), before, after); err != nil {
			t.Error(err)
		}
	}
}

// document writes a soak that found nothing into the documentation.
func (s *soak) document(lifecycles int, took time.Duration, before, after counts) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %d lifecycles in %s, SOAK_SEED=%d.\n\n| what happened | lifecycles |\n|---|---|\n",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), lifecycles, took.Round(time.Second), s.seed)
	for _, fault := range slices.Sorted(maps.Keys(s.told)) {
		fmt.Fprintf(&text, "| %s | %d |\n", fault, s.told[fault])
	}
	text.WriteString("\n| counted | before | after |\n|---|---|---|\n")
	for _, what := range slices.Sorted(maps.Keys(before)) {
		fmt.Fprintf(&text, "| %s | %d | %d |\n", what, before[what], after[what])
	}
	return page.Replace(filepath.Join(s.r.n.Checkout(), "docs", "faults.md"), "written by make soak", text.String())
}

func soakSettings(t *testing.T) (lifecycles int, seed uint64) {
	t.Helper()
	lifecycles, seed = shortSoak, uint64(time.Now().UnixNano())
	var err error
	if text := os.Getenv("SOAK_LIFECYCLES"); text != "" {
		if lifecycles, err = strconv.Atoi(text); err != nil {
			t.Fatalf("SOAK_LIFECYCLES: %v", err)
		}
	}
	if text := os.Getenv("SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAK_SEED: %v", err)
		}
	}
	return lifecycles, seed
}

// soak is what a soak's lifecycles share.
type soak struct {
	r         *rig
	t         *testing.T
	seed      uint64
	set       plugin
	uninstall func()
	node      sync.Mutex // held by whoever ends or starts a daemon

	mu   sync.Mutex // guards told
	told map[string]int
}

// soakFault is something that happens to the node, or to a VM that runs.
type soakFault struct {
	name string
	do   func(ctx context.Context, rng *rand.Rand, p *pod, c *runtimeapi.Container) error // c is nil while none is known to run
}

// live goes through lifecycles, several at once. Those with a number below 0 are not
// told of: they come before and after all.
func (s *soak) live(from, to int, faults []soakFault) {
	var workers errgroup.Group
	workers.SetLimit(soakWorkers)
	for i := from; i < to; i++ {
		workers.Go(func() error {
			ctx, cancel := context.WithTimeout(s.t.Context(), soakPodTime)
			defer cancel()
			rng := rand.New(rand.NewPCG(s.seed, uint64(i)))
			fault := faults[rng.IntN(len(faults))]
			if err := s.lifecycle(ctx, rng, fault); err != nil {
				s.t.Errorf("lifecycle %d, fault %s: %v", i, fault.name, err)
			}
			if i >= 0 {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.told[fault.name]++
			}
			return nil
		})
	}
	_ = workers.Wait() // each has told of its failure
}

// lifecycle is a pod's: it comes up, lives and goes, and at one of these times
// something happens.
func (s *soak) lifecycle(ctx context.Context, rng *rand.Rand, fault soakFault) error {
	const times, atMost = 3, time.Second
	p := s.r.pod(sectorKind)
	meanwhile := func(do func() error) error {
		happened := make(chan error, 1)
		wait := time.NewTimer(time.Duration(rng.Int64N(int64(atMost))))
		defer wait.Stop()
		go func() {
			<-wait.C
			happened <- fault.do(ctx, rng, p, nil)
		}()
		err := do()
		return errors.Join(err, <-happened)
	}
	up := func() error {
		_, err := p.run(ctx)
		return err
	}
	down := func() error { return p.remove(ctx) }
	switch rng.IntN(times) {
	case 0:
		return errors.Join(meanwhile(up), up(), down())
	case 1:
		return errors.Join(up(), meanwhile(down))
	}
	container, err := p.run(ctx)
	if err == nil {
		err = fault.do(ctx, rng, p, container)
	}
	return errors.Join(err, up(), down())
}

// supervised starts dead daemons again while do runs.
func (s *soak) supervised(do func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		again := time.NewTicker(supervision)
		defer again.Stop()
		for {
			select {
			case <-stop:
				return
			case <-again.C:
			}
			s.node.Lock()
			// A fail point may have ended it while it started: the next round tries again.
			if err := s.r.restore(s.t.Context()); err != nil {
				s.t.Logf("a daemon did not start: %v", err)
			}
			s.node.Unlock()
		}
	}()
	do()
	close(stop)
	<-stopped
	_ = os.Remove(s.r.armed) // of a point that nobody has passed since
	if err := s.r.restore(deadline(s.t)); err != nil {
		s.t.Fatal(err)
	}
}

// rest lets the node come to rest, the same way before and after all, and counts until
// the counts are good, or for settleTime. vmruntime is stopped for those of its databases.
func (s *soak) rest(good func(counts) bool) counts {
	s.t.Helper()
	s.live(-soakWorkers, 0, []soakFault{{"none", nothing}})
	ctx, cancel := context.WithTimeout(deadline(s.t), settleTime)
	defer cancel()
	seen, err := s.r.countUntil(ctx, good)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.r.n.Terminate(deadline(s.t), node.VMRuntime); err != nil {
		s.t.Fatal(err)
	}
	if err := s.r.countPages(seen); err != nil {
		s.t.Error(err)
	}
	if err := s.r.restore(deadline(s.t)); err != nil {
		s.t.Fatal(err)
	}
	return seen
}

func nothing(context.Context, *rand.Rand, *pod, *runtimeapi.Container) error { return nil }

// faultsOfAll happen to the whole node.
func (s *soak) faultsOfAll() []soakFault {
	var all []soakFault
	for _, daemon := range []string{node.VMRuntime, node.VMRuntime, node.Libvirtd, node.CRIProxy} {
		all = append(all, soakFault{daemon + " killed", func(ctx context.Context, _ *rand.Rand, _ *pod, _ *runtimeapi.Container) error {
			s.node.Lock()
			defer s.node.Unlock()
			return s.r.n.Kill(ctx, daemon)
		}})
	}
	fail := func(_ context.Context, rng *rand.Rand, _ *pod, _ *runtimeapi.Container) error {
		p := points[rng.IntN(len(points))]
		return s.r.arm(p.operation + "/" + p.names[rng.IntN(len(p.names))])
	}
	return append(all, soakFault{"fail point", fail}, soakFault{"fail point", fail}, soakFault{"libvirtd hangs", s.hangLibvirtd})
}

// hangLibvirtd stops libvirtd for a moment.
func (s *soak) hangLibvirtd(ctx context.Context, rng *rand.Rand, _ *pod, _ *runtimeapi.Container) error {
	s.node.Lock()
	defer s.node.Unlock()
	libvirtd := s.r.n.Process(node.Libvirtd)
	if !libvirtd.Alive() {
		return nil // killed; the supervisor sees to it
	}
	return s.during(ctx, rng, func() error { return libvirtd.Signal(syscall.SIGSTOP) }, func() error { return libvirtd.Signal(syscall.SIGCONT) })
}

// during lets begin be the case for a moment.
func (s *soak) during(ctx context.Context, rng *rand.Rand, begin, end func() error) error {
	const atMost = 3 * time.Second
	if err := begin(); err != nil {
		return err
	}
	moment := time.NewTimer(time.Duration(rng.Int64N(int64(atMost))))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-ctx.Done():
	}
	return end()
}

// faultsOfOne happen to one VM, or harm nobody for long.
func (s *soak) faultsOfOne() []soakFault {
	qemu := func(signal syscall.Signal) func(context.Context, *rand.Rand, *pod, *runtimeapi.Container) error {
		return func(ctx context.Context, _ *rand.Rand, p *pod, _ *runtimeapi.Container) error {
			return s.signalAny(ctx, p, signal)
		}
	}
	plugin := func(mode string) soakFault {
		return soakFault{"CNI " + mode, func(ctx context.Context, rng *rand.Rand, _ *pod, _ *runtimeapi.Container) error {
			return s.during(ctx, rng, func() error { s.set(mode); return nil }, func() error { s.set("well"); return nil })
		}}
	}
	all := []soakFault{
		{"none", nothing},
		{"QEMU killed", qemu(syscall.SIGKILL)},
		{"QEMU killed", qemu(syscall.SIGKILL)},
		{"QEMU hangs", qemu(syscall.SIGSTOP)},
		plugin("ADD fails"), plugin("DEL fails"), plugin("DEL hangs"),
	}
	for name, letter := range map[string]string{
		"powers off": bootsector.PowerOff, "resets": bootsector.Reset, "halts": bootsector.Halt,
		"panics": bootsector.Panic, "ends by a triple fault": bootsector.TripleFault,
	} {
		all = append(all, soakFault{"guest " + name, func(ctx context.Context, _ *rand.Rand, p *pod, c *runtimeapi.Container) error {
			if c == nil {
				return nil // nobody to tell yet, or any more
			}
			return s.tell(ctx, p, c, letter)
		}})
	}
	slices.SortFunc(all, func(a, b soakFault) int { return cmp.Compare(a.name, b.name) }) // for the seed
	return all
}

// tell gives a guest a command, unless its VM has ended: a libvirtd that is killed ends,
// when it comes back, what it had not quite started.
func (s *soak) tell(ctx context.Context, p *pod, c *runtimeapi.Container, letter string) error {
	ended := false
	err := node.Until(ctx, "the guest is ready, or its VM has ended", func(ctx context.Context) error {
		log, err := os.ReadFile(p.logPath(c.GetMetadata().GetAttempt()))
		if err != nil || strings.Contains(joined(log), bootsector.Ready) {
			return err
		}
		status, err := p.status(ctx, c.GetId())
		if ended = err == nil && status.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED; ended {
			return nil
		}
		return errors.Join(errNotReady, err)
	})
	if err != nil || ended {
		return err
	}
	if err = s.r.typeTo(ctx, c.GetId(), letter); err == nil {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if _, exitErr := p.waitExited(short, c.GetId()); exitErr != nil {
		return errors.Join(err, exitErr)
	}
	return nil
}

var errNotReady = errors.New("the guest has not said that it is ready")

// signalAny does something to the processes of the pod's VMs, if there are any.
func (s *soak) signalAny(ctx context.Context, p *pod, signal syscall.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list, err := p.containers(ctx)
	if err != nil {
		return nil // a daemon is away
	}
	for _, c := range list {
		found, err := s.r.qemus(c.GetId())
		if err != nil {
			return err
		}
		for _, q := range found {
			if err := q.Signal(signal); err != nil {
				return err
			}
		}
	}
	return nil
}
