// Package process follows daemons that outlive the program that started them.
//
// A Process is a PID together with the time at which that process started, so
// that a record of it on disk never stands for a later process which got the
// same PID. Signals go through pidfds for the same reason.
//
// Concurrency: a Process is a value; all methods may be called from anywhere.
//
// Trap: a process whose parent does not reap it stays as a zombie; it counts as
// ended here.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollMillis is how long one wait for a process's end lasts before the context
// is looked at again.
const pollMillis = 100

// Process identifies one process for ever. The zero value is no process.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
}

// Find identifies the process that has the PID now. A process that is gone is
// an error that wraps os.ErrNotExist.
func Find(pid int) (Process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive says whether the process exists and is no zombie.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := readStat(p.PID)
	return err == nil && start == p.Start && state != "Z" && state != "X"
}

// Signal sends sig; a process that is gone gets nothing and is no error.
func (p Process) Signal(sig syscall.Signal) error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", sig, p.PID, err)
	}
	return nil
}

// Wait returns when the process has ended, or with the context's error.
func (p Process) Wait(ctx context.Context) error {
	fd, err := p.open()
	if err != nil || fd < 0 {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMillis)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, ctx.Err())
		}
	}
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (p Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// End stops the process by SIGTERM, and by SIGKILL if it is still there after
// grace. A frozen process is let go on, or else it would not see the SIGTERM.
func (p Process) End(ctx context.Context, grace time.Duration) error {
	if err := errors.Join(p.Signal(syscall.SIGTERM), p.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := p.Wait(patience); err == nil {
		return nil
	}
	return p.Kill(ctx)
}

// open returns a descriptor that stands for this very process, -1 if it is gone.
func (p Process) open() (int, error) {
	if p.PID == 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	// Looked at only now: from here on the descriptor keeps the identity.
	if !p.Alive() {
		return -1, unix.Close(fd)
	}
	return fd, nil
}

// readStat returns the start time and the state letter of a process.
func readStat(pid int) (start uint64, state string, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, "", fmt.Errorf("find process %d: %w", pid, err)
	}
	// The name in parentheses may itself contain anything; fields 3, 4 … follow.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const startField = 22 - 3
	if len(fields) <= startField {
		return 0, "", fmt.Errorf("read %s: %d fields after the name", path, len(fields))
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, "", fmt.Errorf("read %s: %w", path, err)
	}
	return start, fields[0], nil
}
