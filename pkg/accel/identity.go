package accel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setIdentity gives the calling thread the user's groups, GID and UID, in that
// order, since the last one takes away the right to change any.
func setIdentity(u User, groups []uint32) error {
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0]) //nolint:gosec // the kernel reads it within the call
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return fmt.Errorf("take the groups: %w", errno)
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("take GID %d: %w", u.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("take UID %d: %w", u.UID, errno)
	}
	return nil
}
