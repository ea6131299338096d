//go:build integration

package logind_test

import (
	"os"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/tests/logind"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// TestLocksDelayAShutdown asks as kubelet does.
func TestLocksDelayAShutdown(t *testing.T) {
	l, err := logind.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	client, err := dbus.Connect(l.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	manager := client.Object("org.freedesktop.login1", "/org/freedesktop/login1")
	delay, err := manager.GetProperty("org.freedesktop.login1.Manager.InhibitDelayMaxUSec")
	if microseconds, ok := delay.Value().(uint64); err != nil || !ok || microseconds < uint64(time.Minute.Microseconds()) {
		t.Errorf("InhibitDelayMaxUSec is %v (%v)", delay, err)
	}
	if err := client.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.login1.Manager"), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 1)
	client.Signal(signals)
	var lock dbus.UnixFD
	if err := manager.Call("org.freedesktop.login1.Manager.Inhibit", 0, "shutdown", "test", "why", "delay").Store(&lock); err != nil {
		t.Fatal(err)
	}
	if err := manager.Call("org.freedesktop.login1.Manager.Inhibit", 0, "sleep", "test", "why", "block").Err; err == nil {
		t.Error("a lock that nothing is known of was given out")
	}
	if err := l.Announce(true); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-signals:
		if len(s.Body) != 1 || s.Body[0] != true {
			t.Errorf("the signal says %v", s.Body)
		}
	case <-time.After(patience):
		t.Fatal("the shutdown is not announced")
	}
	if l.Locks() != 1 {
		t.Errorf("%d locks are held, want one", l.Locks())
	}
	if err := os.NewFile(uintptr(lock), "lock").Close(); err != nil {
		t.Fatal(err)
	}
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(patience); l.Locks() > 0; <-again.C {
		if time.Now().After(end) {
			t.Fatal("the lock is not seen to be released")
		}
	}
}
