package criserver

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEventHubReachesAllAndCutsOffTheSlow(t *testing.T) {
	hub := newEventHub()
	slow, quick := hub.subscribe(), hub.subscribe()
	for range eventBacklog + 1 {
		hub.publish(&runtimeapi.ContainerEventResponse{})
		if event := <-quick; event.GetCreatedAt() == 0 {
			t.Fatal("event has no time")
		}
	}
	received := 0
	for range slow { // ends because the hub has closed it
		received++
	}
	if received != eventBacklog {
		t.Errorf("slow subscriber got %d events, want %d", received, eventBacklog)
	}
	hub.unsubscribe(quick)
	if len(hub.subscribers) != 0 {
		t.Errorf("%d subscribers are left", len(hub.subscribers))
	}
}

func TestExits(t *testing.T) {
	e := newExits()
	first, forgetFirst := e.expect("vm")
	second, forgetSecond := e.expect("vm")
	other, forgetOther := e.expect("other")
	e.announce("vm")
	<-first
	<-second
	select {
	case <-other:
		t.Error("the end of one VM was announced for another")
	default:
	}
	forgetFirst()
	forgetSecond()
	forgetOther()
	if len(e.waiting) != 0 {
		t.Errorf("%d VMs are still awaited", len(e.waiting))
	}
}
