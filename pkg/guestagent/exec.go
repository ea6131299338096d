package guestagent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

// MaxOutput is about how much a program may write, standard output and error
// together, for Run to return it: base64 and a frame must fit into maxAnswer.
const MaxOutput = maxAnswer / 4 * 3 * 95 / 100

// MaxInput is how much standard input a program can be given.
const MaxInput = MaxOutput

// How often the agent is asked whether a program has ended: soon at first, then
// ever less.
const (
	firstPoll = 20 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// killTimeout bounds the work of killing a program whose caller gave up.
const killTimeout = 10 * time.Second

// Command is a program that the agent starts in the guest.
type Command struct {
	Argv  []string // the program, looked up on the agent's PATH, and its arguments
	Env   []string // NAME=value; empty: the agent's own environment
	Stdin []byte   // at most MaxInput
}

// Result is how a program ended.
type Result struct {
	ExitCode  int // 128 + the signal's number if a signal ended it
	Stdout    []byte
	Stderr    []byte
	Truncated bool // the agent left some output out
}

// Run starts a program and waits for its end. When the context ends first, the
// program and its descendants are killed, if the guest lets them, and the context's
// error is returned.
//
// Errors: ErrNoAgent; errdefs.ErrAborted when the agent could not start the program
// or refuses to start any; errdefs.ErrInvalidArgument when Argv is empty or Stdin is
// too long; errdefs.ErrDataLoss when the answers make no sense.
func (a *Agent) Run(ctx context.Context, c Command) (Result, error) {
	pid, err := a.Start(ctx, c)
	if err != nil {
		return Result{}, err
	}
	result, err := a.Wait(ctx, pid)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(err, a.kill(context.WithoutCancel(ctx), pid))
	}
	return result, err
}

// Start starts a program and returns its process ID in the guest; its output is kept
// by the agent for Status.
func (a *Agent) Start(ctx context.Context, c Command) (int, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return 0, fmt.Errorf("run a program in %s: no command given: %w", a.name, errdefs.ErrInvalidArgument)
	}
	if len(c.Stdin) > MaxInput {
		return 0, fmt.Errorf("run %s in %s: %d bytes of input are more than the guest agent can take, which is %d: %w",
			c.Argv[0], a.name, len(c.Stdin), MaxInput, errdefs.ErrInvalidArgument)
	}
	var started struct {
		PID int `json:"pid"`
	}
	if err := a.call(ctx, "guest-exec", execArguments{
		Path: c.Argv[0], Args: c.Argv[1:], Env: c.Env, Input: c.Stdin, Capture: true,
	}, &started); err != nil {
		return 0, err
	}
	if started.PID <= 0 {
		return 0, fmt.Errorf("guest agent of %s says that %s runs as process %d: %w", a.name, c.Argv[0], started.PID, errdefs.ErrDataLoss)
	}
	return started.PID, nil
}

// execArguments are those of guest-exec; encoding/json makes base64 of bytes.
type execArguments struct {
	Path    string   `json:"path"`
	Args    []string `json:"arg,omitempty"`
	Env     []string `json:"env,omitempty"`
	Input   []byte   `json:"input-data,omitempty"`
	Capture bool     `json:"capture-output"`
}

// Status returns how a program ended; ended is false while it runs. Once it has
// returned a Result the agent knows nothing of the program any more.
func (a *Agent) Status(ctx context.Context, pid int) (result Result, ended bool, err error) {
	var status struct {
		Exited       bool   `json:"exited"`
		ExitCode     *int   `json:"exitcode"`
		Signal       *int   `json:"signal"`
		Stdout       []byte `json:"out-data"`
		Stderr       []byte `json:"err-data"`
		OutTruncated bool   `json:"out-truncated"`
		ErrTruncated bool   `json:"err-truncated"`
	}
	if err := a.call(ctx, "guest-exec-status", map[string]int{"pid": pid}, &status); err != nil {
		return Result{}, false, err
	}
	if !status.Exited {
		return Result{}, false, nil
	}
	result = Result{Stdout: status.Stdout, Stderr: status.Stderr, Truncated: status.OutTruncated || status.ErrTruncated}
	switch {
	case status.ExitCode != nil && *status.ExitCode >= 0 && *status.ExitCode <= 255:
		result.ExitCode = *status.ExitCode
	case status.Signal != nil && *status.Signal > 0 && *status.Signal < 128:
		result.ExitCode = 128 + *status.Signal
	default:
		return Result{}, true, fmt.Errorf("guest agent of %s does not say how process %d ended: %w", a.name, pid, errdefs.ErrDataLoss)
	}
	return result, true, nil
}

// Wait asks until the program has ended.
func (a *Agent) Wait(ctx context.Context, pid int) (Result, error) {
	pause := firstPoll
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return Result{}, fmt.Errorf("wait for process %d in %s: %w", pid, a.name, ctx.Err())
		case <-timer.C:
		}
		result, ended, err := a.Status(ctx, pid)
		if err != nil || ended {
			return result, err
		}
		pause = min(pause*3/2, lastPoll)
		timer.Reset(pause)
	}
}

// killTree kills a process and what descends from it. A process is stopped before
// its children are looked up, so that it makes no more of them.
const killTree = `end() {
	kill -STOP "$1" 2>/dev/null
	for status in /proc/[0-9]*/status; do
		child=${status#/proc/} child=${child%/status}
		while read -r key value; do
			if [ "$key" = PPid: ]; then
				[ "$value" = "$1" ] && (end "$child")
				break
			fi
		done 2>/dev/null <"$status"
	done
	kill -KILL "$1" 2>/dev/null
}
end "$0"`

// kill ends a program that nobody waits for any more. The agent has no command for
// it; the guest's shell has.
func (a *Agent) kill(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	killer, err := a.Start(ctx, Command{Argv: []string{"/bin/sh", "-c", killTree, strconv.Itoa(pid)}})
	if err == nil {
		_, err = a.Wait(ctx, killer)
	}
	if err == nil {
		// Fetching the end makes the agent forget the program.
		_, err = a.Wait(ctx, pid)
	}
	if err != nil {
		return fmt.Errorf("process %d goes on running in the guest: %w", pid, err)
	}
	return nil
}
