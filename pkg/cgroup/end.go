package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// pollMillis is how often a wait for the end of a process looks at its context.
const pollMillis = 100

// End kills what runs in a group, waits until it is gone and deletes the group; it
// is no error if there is none. Only the group itself is emptied, none below it.
func End(ctx context.Context, group string) error {
	for {
		pids, err := processes(group, false)
		if errdefs.IsNotFound(err) {
			return Delete(group) // of v1, one controller may still have it, after a kill amidst an End
		}
		if err != nil {
			return fmt.Errorf("list processes of cgroup %s: %w", group, err)
		}
		if len(pids) == 0 {
			return Delete(group)
		}
		for _, pid := range pids {
			if err := kill(ctx, group, pid); err != nil {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, group, err)
			}
		}
	}
}

// kill ends a process if it is still of the group: its number may have passed to
// another since it was listed, but not since the descriptor was opened.
func kill(ctx context.Context, group string, pid int) (err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(process)) }()
	members, err := processes(group, false)
	if err != nil || !slices.Contains(members, pid) {
		return err
	}
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, pollMillis) //nolint:gosec // a descriptor
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// processes lists the processes of a group, and perhaps of those below it.
func processes(group string, below bool) ([]int, error) {
	list := processes1
	if unified() {
		list = processes2
	}
	pids, err := list(group, below)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound) // it went while we read
	}
	return pids, err
}

func processes1(group string, below bool) ([]int, error) {
	control, err := load1(group, counters1)
	if err != nil {
		return nil, err
	}
	controller := cgroup1.Memory
	if left := control.Subsystems(); !slices.ContainsFunc(left, func(s cgroup1.Subsystem) bool { return s.Name() == controller }) {
		controller = left[0].Name() // after a kill amidst a Delete; the others have the same processes
	}
	found, err := control.Processes(controller, below)
	pids := make([]int, len(found))
	for i, process := range found {
		pids[i] = process.Pid
	}
	return pids, err
}

func processes2(group string, below bool) ([]int, error) {
	manager, err := load2(group)
	if err != nil {
		return nil, err
	}
	found, err := manager.Procs(below)
	pids := make([]int, len(found))
	for i, pid := range found {
		pids[i] = int(pid) //nolint:gosec // process IDs are small
	}
	return pids, err
}
