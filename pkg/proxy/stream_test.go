package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// collect reads a stream of containers to its end, checking what the CRI says
// about each message.
func collect(t *testing.T, s *setup, filter *runtimeapi.ContainerFilter) (ids []string, messages int, err error) {
	t.Helper()
	stream := must[grpc.ServerStreamingClient[runtimeapi.StreamContainersResponse]](t)(
		s.StreamContainers(ctx(t), &runtimeapi.StreamContainersRequest{Filter: filter}, grpc.MaxCallRecvMsgSize(2*chunk)))
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return ids, messages, nil
		}
		if err != nil {
			return ids, messages, err
		}
		messages++
		if len(part.GetContainers()) == 0 {
			t.Error("a message without items")
		}
		for _, c := range part.GetContainers() {
			ids = append(ids, c.GetId())
		}
	}
}

// A streamed list has every item of both runtimes once, whether they stream or
// answer Unimplemented and are asked for their list.
func TestStreamedList(t *testing.T) {
	for _, c := range []struct{ def, vm bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		t.Run(fmt.Sprintf("default streams %v, vm streams %v", c.def, c.vm), func(t *testing.T) {
			s := newSetup(t)
			s.def.streams, s.vm.streams = c.def, c.vm
			fill(s.def, 3000)
			fill(s.vm, 10)
			ids, messages, err := collect(t, s, nil)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, c := range s.def.containers {
				want = append(want, c.GetId())
			}
			for _, c := range s.vm.containers {
				want = append(want, "vm."+c.GetId())
			}
			if !slices.Equal(ids, want) {
				t.Errorf("%d items, want %d, or they differ", len(ids), len(want))
			}
			if messages < 3 {
				t.Errorf("%d messages for more than 3 MB", messages)
			}
		})
	}
}

func TestStreamedListOfOneRuntime(t *testing.T) {
	s := newSetup(t)
	s.def.streams, s.vm.streams = true, true
	fill(s.def, 2)
	fill(s.vm, 2)
	ids, _, err := collect(t, s, &runtimeapi.ContainerFilter{Id: "vm." + s.vm.containers[1].GetId()})
	if err != nil || !slices.Equal(ids, []string{"vm." + s.vm.containers[1].GetId()}) {
		t.Errorf("items %v, %v", ids, err)
	}
	if len(s.def.got("StreamContainers")) > 0 {
		t.Error("the default was asked for a VM")
	}
}

func TestEmptyStreamedList(t *testing.T) {
	s := newSetup(t)
	if ids, messages, err := collect(t, s, nil); err != nil || len(ids) != 0 || messages != 0 {
		t.Errorf("%d items in %d messages, %v", len(ids), messages, err)
	}
}

// A runtime whose stream breaks in the middle is replaced by memory, whole.
func TestStreamedListOfABreakingRuntime(t *testing.T) {
	s := newSetup(t)
	s.def.streams, s.vm.streams = true, true
	fill(s.def, 2)
	fill(s.vm, 2)
	before, _, err := collect(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.vm.stop()
	startRaw(t, s.vm.socket, func(stream grpc.ServerStream) error {
		if err := stream.SendMsg(frameOf([]byte{0x0a, 0x02, 0x0a, 0x00})); err != nil {
			return err
		}
		return status.Error(codes.Internal, "broke in the middle")
	})
	eventually(t, "the breaking runtime is connected", s.backend("vm").isReady)
	after, _, err := collect(t, s, nil)
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("items %v, %v, want %v", after, err, before)
	}
	s.def.onCall(func(context.Context, string) error { return status.Error(codes.Internal, "default broken") })
	if _, _, err := collect(t, s, nil); status.Convert(err).Message() != "default broken" {
		t.Errorf("error %v, want the default's own", err)
	}
}

func subscribe(t *testing.T, s *setup) <-chan *runtimeapi.ContainerEventResponse {
	t.Helper()
	call, cancel := context.WithCancel(t.Context())
	stream := must[grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse]](t)(s.GetContainerEvents(call, &runtimeapi.GetEventsRequest{}))
	events := make(chan *runtimeapi.ContainerEventResponse, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			events <- e
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return events
}

func next(t *testing.T, events <-chan *runtimeapi.ContainerEventResponse) *runtimeapi.ContainerEventResponse {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the event stream ended")
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event came")
	}
	return nil
}

func event(n int) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{
		ContainerId: hexID(n), CreatedAt: int64(n), PodSandboxStatus: &runtimeapi.PodSandboxStatus{Id: hexID(n)},
		ContainersStatuses: []*runtimeapi.ContainerStatus{{Id: hexID(n), ImageId: hexID(7)}},
	}
}

// Events of all runtimes arrive, with their IDs rewritten; a runtime that breaks
// or lags neither ends nor delays the others' and is subscribed to again.
func TestEvents(t *testing.T) {
	s := newSetup(t)
	s.def.streams, s.vm.streams = true, true
	events := subscribe(t, s)
	s.vm.events <- event(1)
	e := next(t, events)
	if id := "vm." + hexID(1); e.GetContainerId() != id || e.GetPodSandboxStatus().GetId() != id ||
		e.GetContainersStatuses()[0].GetId() != id || e.GetContainersStatuses()[0].GetImageId() != "vm."+hexID(7) {
		t.Errorf("event %v, want every ID prefixed", e)
	}
	s.def.events <- event(2)
	if e := next(t, events); e.GetContainerId() != hexID(2) {
		t.Errorf("event of %s, want the default's", e.GetContainerId())
	}
	s.vm.stop()
	s.def.events <- event(3)
	if e := next(t, events); e.GetCreatedAt() != 3 {
		t.Errorf("event %v after the VM runtime broke", e)
	}
	s.vm.start(t)
	s.vm.events <- event(4)
	if e := next(t, events); e.GetContainerId() != "vm."+hexID(4) {
		t.Errorf("event %v after the VM runtime is back", e)
	}
	s.def.stop()
	s.vm.events <- event(5)
	if e := next(t, events); e.GetCreatedAt() != 5 {
		t.Errorf("event %v after the default broke", e)
	}
	s.def.start(t)
	s.def.events <- event(6)
	if e := next(t, events); e.GetContainerId() != hexID(6) {
		t.Errorf("event %v after the default is back", e)
	}
}

// A default without events sends kubelet back to polling; another runtime
// without them only has none.
func TestEventsOfOldRuntimes(t *testing.T) {
	s := newSetup(t)
	s.vm.streams = true
	stream := must[grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse]](t)(s.GetContainerEvents(ctx(t), &runtimeapi.GetEventsRequest{}))
	_, err := stream.Recv()
	wantCode(t, err, codes.Unimplemented)

	s = newSetup(t)
	s.def.streams = true
	events := subscribe(t, s)
	s.def.events <- event(1)
	if e := next(t, events); e.GetContainerId() != hexID(1) {
		t.Errorf("event %v", e)
	}
}

// An event that cannot be read is dropped; those after it arrive.
func TestGarbageEvents(t *testing.T) {
	s := newStoppedSetup(t)
	s.def.streams = true
	s.def.start(t)
	first := make(chan bool, 1)
	first <- true
	startRaw(t, s.vm.socket, func(stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); methodLabel(method) != "GetContainerEvents" {
			return status.Error(codes.Unimplemented, method)
		}
		select {
		case <-first:
			return stream.SendMsg(frameOf([]byte{0x0a, 0xff}))
		default:
			if err := stream.SendMsg(frameOf([]byte("\x0a\x04good"))); err != nil {
				return err
			}
			<-stream.Context().Done()
			return nil
		}
	})
	s.startProxy(t)
	events := subscribe(t, s)
	if e := next(t, events); e.GetContainerId() != "vm.good" {
		t.Errorf("event %v", e)
	}
}

// A subscription follows a reload: the new runtime's events come in, and the
// others' go on.
func TestEventsFollowReload(t *testing.T) {
	s := newSetup(t)
	s.def.streams, s.vm.streams = true, true
	events := subscribe(t, s)
	other := newTestRuntime(s.dir, "other")
	other.streams = true
	other.start(t)
	changed := *s.config
	changed.Backends = append(slices.Clone(changed.Backends), BackendConfig{Name: "other", Socket: other.socket, IDPrefix: "o."})
	if err := s.proxy.Reload(&changed); err != nil {
		t.Fatal(err)
	}
	other.events <- event(1)
	if e := next(t, events); e.GetContainerId() != "o."+hexID(1) {
		t.Errorf("event %v", e)
	}
	s.vm.events <- event(2)
	if e := next(t, events); e.GetContainerId() != "vm."+hexID(2) {
		t.Errorf("event %v", e)
	}
}

// A proxy that stops ends event streams at once, so that they do not hold it up.
func TestEventsEndWithTheProxy(t *testing.T) {
	s := newSetup(t)
	s.def.streams, s.vm.streams = true, true
	stream := must[grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse]](t)(s.GetContainerEvents(ctx(t), &runtimeapi.GetEventsRequest{}))
	s.def.events <- event(1)
	must[*runtimeapi.ContainerEventResponse](t)(stream.Recv())
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Recv()
		ended <- err
	}()
	started := time.Now()
	s.stop()
	wantCode(t, <-ended, codes.Unavailable)
	if took := time.Since(started); took > drainTime/2 {
		t.Errorf("stopping took %v", took)
	}
}
