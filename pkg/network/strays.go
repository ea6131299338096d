package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// strayWait is for how long the end of a killed stray is waited for.
const strayWait = time.Second

// endStrays waits for pluginGrace for the end of the CNI plugins of an earlier process that
// was itself killed, and kills what is left of them: one that hung would stay for ever, and
// one that is slow would go on setting up what is being torn down. They and their children
// are known by their environment, which names a namespace in our folder.
func endStrays(netnsDir string) (ended int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("look for CNI plugins of an earlier process: %w", err)
	}
	mark := []byte("CNI_NETNS=" + filepath.Clean(netnsDir) + "/")
	until := time.Now().Add(pluginGrace)
	var failures error
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		found, err := endStray(pid, mark, until)
		if err != nil {
			failures = errors.Join(failures, fmt.Errorf("end process %d, a CNI plugin of an earlier process: %w", pid, err))
		} else if found {
			ended++
		}
	}
	return ended, failures
}

// endStray ends a process if its environment has a variable that begins with mark.
func endStray(pid int, mark []byte, until time.Time) (found bool, err error) {
	// Opened before its environment is read, so that it is this process that is killed.
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil // it has ended, or was no process but a thread
	}
	defer func() { err = errors.Join(err, unix.Close(process)) }()
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false, nil // it has ended, or is none that we may look at
	}
	if !bytes.HasPrefix(environment, mark) && !bytes.Contains(environment, append([]byte{0}, mark...)) {
		return false, nil
	}
	if ended, err := waitStray(process, time.Until(until)); ended || err != nil {
		return true, err
	}
	if err := unix.PidfdSendSignal(process, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return true, err
	}
	ended, err := waitStray(process, strayWait)
	if err == nil && !ended {
		err = fmt.Errorf("it does not end: %w", os.ErrDeadlineExceeded)
	}
	return true, err
}

// waitStray tells whether a process has ended in time.
func waitStray(process int, most time.Duration) (ended bool, err error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, int(max(0, most)/time.Millisecond)) //nolint:gosec // a descriptor
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}
