package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// pollMillis is how long one wait for a process's end lasts before the context
// is looked at again.
const pollMillis = 100

// Process is a process that cannot be confused with a later one of equal PID.
// The zero value is no process.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
}

// Alive says whether the process exists and is no zombie.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := readStat(p.PID)
	return err == nil && start == p.Start && state != "Z" && state != "X"
}

// end stops the process by SIGTERM, and by SIGKILL after stopGrace. A frozen
// process is let go on, or else it would not see the SIGTERM.
func (p Process) end(ctx context.Context) error {
	if err := errors.Join(p.signal(syscall.SIGTERM), p.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := p.wait(patience); err == nil {
		return nil
	}
	return p.kill(ctx)
}

// kill stops the process by SIGKILL and waits until it is gone.
func (p Process) kill(ctx context.Context) error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.wait(ctx)
}

// signal sends sig; a process that is gone gets nothing and is no error.
func (p Process) signal(sig syscall.Signal) error {
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

// wait returns when the process is gone or the context is.
func (p Process) wait(ctx context.Context) error {
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

// FindProcess identifies the process that has the PID now. A process that is gone
// is an error that wraps os.ErrNotExist.
func FindProcess(pid int) (Process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
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

// members lists the processes in the instance's mount namespaces except its
// virtlogd, which must go on logging until its writers have ended.
func (i *Instance) members() ([]Process, error) {
	run, err := os.Stat(filepath.Join(i.Dir, "run"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of libvirtd: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes of libvirtd: %w", err)
	}
	var found []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == i.Virtlogd.PID {
			continue
		}
		p, err := FindProcess(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		seen, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/libvirt", pid))
		if err == nil && os.SameFile(run, seen) {
			found = append(found, p)
		}
	}
	return found, nil
}
