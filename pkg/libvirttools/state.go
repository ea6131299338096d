package libvirttools

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"
)

// Phase is where a domain is in its life.
type Phase string

// The phases. ShutOff and Crashed domains have no QEMU process, all others do.
const (
	PhaseRunning   Phase = "running"
	PhasePaused    Phase = "paused"
	PhaseStopping  Phase = "stopping" // the guest has powered off, QEMU is about to end
	PhaseSuspended Phase = "suspended"
	PhaseShutOff   Phase = "shut off"
	PhaseCrashed   Phase = "crashed" // the guest's kernel panicked and QEMU is kept
	PhaseUnknown   Phase = "unknown"
)

// Reason is why a domain is in its phase, or why it left it.
type Reason string

// Reasons that callers tell apart; others are libvirt's words for rare cases.
const (
	ReasonUnknown   Reason = "unknown"   // also of each inactive domain after a restart of libvirtd
	ReasonShutdown  Reason = "shutdown"  // the guest powered itself off, asked to or not
	ReasonDestroyed Reason = "destroyed" // by Destroy, or virsh destroy
	ReasonCrashed   Reason = "crashed"   // QEMU died or the guest panicked
	ReasonFailed    Reason = "failed"    // QEMU did not start
	ReasonDaemon    Reason = "daemon"    // libvirtd ended it while it came up
	ReasonSaved     Reason = "saved"
	ReasonMigrated  Reason = "migrated"
	ReasonSnapshot  Reason = "snapshot"
	ReasonBooted    Reason = "booted"
	ReasonResumed   Reason = "resumed"
	ReasonIOError   Reason = "I/O error" // for example no space for a disk's growth
	ReasonUser      Reason = "user"
	ReasonStarting  Reason = "starting"
	ReasonWatchdog  Reason = "watchdog"
	ReasonPanicked  Reason = "panicked"
)

// State of a domain.
type State struct {
	Phase  Phase
	Reason Reason
}

// Active says whether a QEMU process stands behind the domain.
func (s State) Active() bool {
	switch s.Phase {
	case PhaseRunning, PhasePaused, PhaseStopping, PhaseSuspended, PhaseCrashed:
		return true
	default:
		return false
	}
}

var phases = map[libvirt.DomainState]Phase{
	libvirt.DOMAIN_RUNNING:     PhaseRunning,
	libvirt.DOMAIN_BLOCKED:     PhaseRunning,
	libvirt.DOMAIN_PAUSED:      PhasePaused,
	libvirt.DOMAIN_SHUTDOWN:    PhaseStopping,
	libvirt.DOMAIN_SHUTOFF:     PhaseShutOff,
	libvirt.DOMAIN_CRASHED:     PhaseCrashed,
	libvirt.DOMAIN_PMSUSPENDED: PhaseSuspended,
}

var runningReasons = map[libvirt.DomainRunningReason]Reason{
	libvirt.DOMAIN_RUNNING_BOOTED:        ReasonBooted,
	libvirt.DOMAIN_RUNNING_MIGRATED:      ReasonMigrated,
	libvirt.DOMAIN_RUNNING_RESTORED:      ReasonSaved,
	libvirt.DOMAIN_RUNNING_FROM_SNAPSHOT: ReasonSnapshot,
	libvirt.DOMAIN_RUNNING_UNPAUSED:      ReasonResumed,
	libvirt.DOMAIN_RUNNING_WAKEUP:        ReasonResumed,
	libvirt.DOMAIN_RUNNING_CRASHED:       ReasonCrashed,
}

var pausedReasons = map[libvirt.DomainPausedReason]Reason{
	libvirt.DOMAIN_PAUSED_USER:          ReasonUser,
	libvirt.DOMAIN_PAUSED_MIGRATION:     ReasonMigrated,
	libvirt.DOMAIN_PAUSED_SAVE:          ReasonSaved,
	libvirt.DOMAIN_PAUSED_IOERROR:       ReasonIOError,
	libvirt.DOMAIN_PAUSED_WATCHDOG:      ReasonWatchdog,
	libvirt.DOMAIN_PAUSED_FROM_SNAPSHOT: ReasonSnapshot,
	libvirt.DOMAIN_PAUSED_SNAPSHOT:      ReasonSnapshot,
	libvirt.DOMAIN_PAUSED_SHUTTING_DOWN: ReasonShutdown,
	libvirt.DOMAIN_PAUSED_CRASHED:       ReasonCrashed,
	libvirt.DOMAIN_PAUSED_STARTING_UP:   ReasonStarting,
}

var shutoffReasons = map[libvirt.DomainShutoffReason]Reason{
	libvirt.DOMAIN_SHUTOFF_SHUTDOWN:      ReasonShutdown,
	libvirt.DOMAIN_SHUTOFF_DESTROYED:     ReasonDestroyed,
	libvirt.DOMAIN_SHUTOFF_CRASHED:       ReasonCrashed,
	libvirt.DOMAIN_SHUTOFF_MIGRATED:      ReasonMigrated,
	libvirt.DOMAIN_SHUTOFF_SAVED:         ReasonSaved,
	libvirt.DOMAIN_SHUTOFF_FAILED:        ReasonFailed,
	libvirt.DOMAIN_SHUTOFF_FROM_SNAPSHOT: ReasonSnapshot,
	libvirt.DOMAIN_SHUTOFF_DAEMON:        ReasonDaemon,
}

// toState translates libvirt's pair of numbers.
func toState(state libvirt.DomainState, why int) State {
	s := State{Phase: phases[state]}
	switch state {
	case libvirt.DOMAIN_RUNNING:
		s.Reason = runningReasons[libvirt.DomainRunningReason(why)]
	case libvirt.DOMAIN_PAUSED:
		s.Reason = pausedReasons[libvirt.DomainPausedReason(why)]
	case libvirt.DOMAIN_SHUTOFF:
		s.Reason = shutoffReasons[libvirt.DomainShutoffReason(why)]
	case libvirt.DOMAIN_SHUTDOWN:
		s.Reason = ReasonShutdown
	case libvirt.DOMAIN_CRASHED:
		s.Reason = ReasonPanicked
	}
	if s.Phase == "" {
		s.Phase = PhaseUnknown
	}
	if s.Reason == "" {
		s.Reason = ReasonUnknown
	}
	return s
}

// State of a domain, its own or foreign; errdefs.ErrNotFound if there is none.
// It does not wait for QEMU.
func (c *Client) State(ctx context.Context, uuid string) (State, error) {
	state, err := look(ctx, c, func(conn *libvirt.Connect) (State, error) {
		return withDomain(conn, uuid, stateOf)
	})
	if err != nil {
		return State{}, fmt.Errorf("state of domain %s: %w", uuid, err)
	}
	return state, nil
}

func stateOf(dom *libvirt.Domain) (State, error) {
	state, why, err := dom.GetState()
	if err != nil {
		return State{}, err
	}
	return toState(state, why), nil
}

// withDomain runs fn with a domain that it looks up and frees.
func withDomain[T any](conn *libvirt.Connect, uuid string, fn func(*libvirt.Domain) (T, error)) (T, error) {
	dom, err := conn.LookupDomainByUUIDString(uuid)
	if err != nil {
		var none T
		return none, err
	}
	defer func() { _ = dom.Free() }()
	return fn(dom)
}
