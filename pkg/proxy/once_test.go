package proxy

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A call whose runtime dies under it fails at once, and the runtime that comes back
// does not hear of it again: it may have been executed.
func TestNoCallIsMadeTwice(t *testing.T) {
	for name, handler := range map[string]string{"containerd": "", "vm": "vm"} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			r := map[string]*testRuntime{"containerd": s.def, "vm": s.vm}[name]
			began := make(chan time.Time, 1)
			r.onCall(func(ctx context.Context, method string) error {
				if method == "RunPodSandbox" {
					began <- time.Now()
					go r.stop()
					<-ctx.Done()
				}
				return ctx.Err()
			})
			_, err := s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: handler})
			wantCode(t, err, codes.Unavailable)
			if took := time.Since(<-began); took > atOnce {
				t.Errorf("the call ended %v after its runtime", took)
			}
			r.onCall(nil)
			r.start(t)
			eventually(t, "the runtime makes pods again", func() bool {
				_, err := s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: handler})
				return err == nil
			})
			if calls := r.got("RunPodSandbox"); len(calls) != 2 {
				t.Errorf("the runtime got %d calls, want the one that broke and the one that succeeded", len(calls))
			}
		})
	}
}

// Calls that do not need a runtime take as long as ever while it is away, or hangs
// with many calls under way.
func TestTroubleElsewhereTakesNoTime(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.def.mu.Lock()
	id := s.def.containers[0].GetId()
	s.def.mu.Unlock()
	const calls, rounds = 100, 4
	// The best of several medians is what the machine's other work disturbs least.
	medianOf := func() time.Duration {
		var took []time.Duration
		for range calls {
			began := time.Now()
			must[*runtimeapi.ContainerStatusResponse](t)(s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: id}))
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[calls/2]
	}
	best := map[string]time.Duration{"well": time.Hour, "hung": time.Hour, "away": time.Hour}
	for range rounds {
		best["well"] = min(best["well"], medianOf())

		release := hang(s.vm)
		waiting := make(chan struct{})
		const hanging = 20
		for range hanging {
			go func() {
				_, _ = s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
				waiting <- struct{}{}
			}()
		}
		best["hung"] = min(best["hung"], medianOf())
		release()
		for range hanging {
			<-waiting
		}

		s.vm.stop()
		best["away"] = min(best["away"], medianOf())
		s.vm.start(t)
		s.wantRecovery(t, container)
	}
	t.Logf("a call to the default takes %v", best)
	const slack = time.Millisecond // of the machine
	for trouble, took := range best {
		if took > best["well"]*3/2+slack {
			t.Errorf("a call to the default takes %v while the VM runtime is %s, else %v", took, trouble, best["well"])
		}
	}
}

// hang makes all calls to a runtime wait until release.
func hang(r *testRuntime) (release func()) {
	released := make(chan struct{})
	r.onCall(func(ctx context.Context, _ string) error {
		select {
		case <-released:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return func() {
		r.onCall(nil)
		close(released)
	}
}
