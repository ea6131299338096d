package accel

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// mayOpen tries whether a user may open the device, by opening it as that user: no
// reading of modes, groups and access lists could be as sure. The error is the
// reason why not, without a class.
func mayOpen(device string, u User) error {
	if os.Geteuid() != 0 && u.UID != uint32(os.Geteuid()) { //nolint:gosec // UIDs have 32 bits
		return fmt.Errorf("whether user %d may open %s cannot be tried without root's rights", u.UID, device)
	}
	groups, name, err := groupsOf(u)
	if err != nil {
		return err
	}
	if err := onThreadThatEnds(func() error { return openAs(device, u, groups) }); err != nil {
		return fmt.Errorf("user %s, whom QEMU runs as, may not open %s (%w), so libvirt would take minutes for each VM", name, device, err)
	}
	return nil
}

// onThreadThatEnds runs a function on a thread that ends with it. Only bare system
// calls change one thread; Go's change all.
func onThreadThatEnds(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends
		if unix.Gettid() != unix.Getpid() {
			result <- do()
			return
		}
		// The main thread never ends, and its identity is the process's to others.
		// While it is held here, the next try gets another one.
		result <- onThreadThatEnds(do)
		runtime.UnlockOSThread()
	}()
	return <-result
}

// groupsOf returns a user's supplementary groups, as libvirt gives them to QEMU,
// and its name or number.
func groupsOf(u User) ([]uint32, string, error) {
	number := strconv.FormatUint(uint64(u.UID), 10)
	account, err := user.LookupId(number)
	if errors.As(err, new(user.UnknownUserIdError)) {
		return nil, number, nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("user %s cannot be looked up (%w)", number, err)
	}
	ids, err := account.GroupIds()
	if err != nil {
		return nil, "", fmt.Errorf("groups of user %s cannot be looked up (%w)", account.Username, err)
	}
	groups := make([]uint32, 0, len(ids))
	for _, id := range ids {
		group, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, "", fmt.Errorf("groups of user %s cannot be looked up (%w)", account.Username, err)
		}
		groups = append(groups, uint32(group))
	}
	return groups, account.Username, nil
}

// openAs becomes the user, on this thread alone and for ever, and opens the device.
func openAs(device string, u User, groups []uint32) error {
	if os.Geteuid() == 0 {
		if err := setIdentity(u, groups); err != nil {
			return err
		}
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
