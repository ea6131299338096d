package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// groupOrOtherMayWrite are the mode bits that let others than a folder's owner swap
// what is in it.
const groupOrOtherMayWrite = 0o022

// Dial connects to a socket that a less trusted process could try to swap for
// another, for example for a symbolic link to a daemon's socket. It connects to the
// very file that it has checked:
//
//   - the folder belongs to this process's user and nobody else may write to it;
//   - the path is a socket, no link, and belongs to one of the given users;
//   - whoever listens is one of these users.
//
// Errors: errdefs.ErrNotFound when there is no such socket, errdefs.ErrUnavailable
// when nobody listens or accepts, errdefs.ErrPermissionDenied when a check fails.
func Dial(ctx context.Context, path string, users ...int) (*net.UnixConn, error) {
	socket, err := openSocket(path, users)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	defer func() { _ = unix.Close(socket) }()
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", socket))
	if err != nil {
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			err = fmt.Errorf("nobody listens: %w", errdefs.ErrUnavailable)
		case errors.Is(err, unix.EAGAIN): // unix(7): the queue of connections is full
			err = fmt.Errorf("who listens is too busy to accept, try again: %w", errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	peer := connection.(*net.UnixConn) //nolint:errcheck,forcetypeassert // what "unix" is documented to be
	if err := checkPeer(peer, users); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", path, err), peer.Close())
	}
	return peer, nil
}

// openSocket returns a descriptor that stands for the socket's file whatever happens
// to its path.
func openSocket(path string, users []int) (int, error) {
	folder, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, notFound(err)
	}
	defer func() { _ = unix.Close(folder) }()
	var info unix.Stat_t
	if err := unix.Fstat(folder, &info); err != nil {
		return -1, err
	}
	if int(info.Uid) != os.Geteuid() || info.Mode&groupOrOtherMayWrite != 0 {
		return -1, fmt.Errorf("folder belongs to user %d with mode %#o, so the socket may not be what it seems: %w",
			info.Uid, info.Mode&0o7777, errdefs.ErrPermissionDenied)
	}
	socket, err := unix.Openat(folder, filepath.Base(path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, notFound(err)
	}
	if err := checkSocket(socket, users); err != nil {
		_ = unix.Close(socket)
		return -1, err
	}
	return socket, nil
}

func checkSocket(socket int, users []int) error {
	var info unix.Stat_t
	if err := unix.Fstat(socket, &info); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("it is no socket: %w", errdefs.ErrPermissionDenied)
	}
	if !slices.Contains(users, int(info.Uid)) {
		return fmt.Errorf("it belongs to user %d, expected one of %v: %w", info.Uid, users, errdefs.ErrPermissionDenied)
	}
	return nil
}

// checkPeer looks at who called listen(2).
func checkPeer(connection *net.UnixConn, users []int) error {
	raw, err := connection.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if peerErr != nil {
		return fmt.Errorf("find out who listens: %w", peerErr)
	}
	if !slices.Contains(users, int(peer.Uid)) {
		return fmt.Errorf("user %d listens, expected one of %v: %w", peer.Uid, users, errdefs.ErrPermissionDenied)
	}
	return nil
}

func notFound(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return err
}
