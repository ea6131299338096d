// Package unixsocket makes the listening unix sockets of Ambipod's daemons: with the
// right owner and mode, in place of one that a dead process left, and never in place
// of one that a living process serves.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// mode lets the owner alone connect.
const mode = 0o600

// answerTimeout bounds the question whether somebody serves an existing socket.
const answerTimeout = time.Second

// maxPath is the longest path of a unix socket on Linux, unix(7).
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Networks of sockets, as package net names them.
const (
	streams = "unix"
	packets = "unixpacket"
)

// Listen listens at path with a socket that only its owner (uid, gid) can connect to.
// The socket is removed when the listener is closed.
//
// Errors: errdefs.ErrAlreadyExists when another process serves the socket or the
// path is something else than a socket, errdefs.ErrInvalidArgument when the path is
// too long for a socket's address.
func Listen(ctx context.Context, path string, uid, gid int) (*net.UnixListener, error) {
	return listenAs(ctx, streams, path, uid, gid)
}

// ListenPackets is Listen for a socket that keeps the bounds of messages (unix(7),
// SOCK_SEQPACKET).
func ListenPackets(ctx context.Context, path string, uid, gid int) (*net.UnixListener, error) {
	return listenAs(ctx, packets, path, uid, gid)
}

func listenAs(ctx context.Context, network, path string, uid, gid int) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket path %s is longer than the %d bytes that Linux allows, choose a shorter folder: %w",
			path, maxPath, errdefs.ErrInvalidArgument)
	}
	listener, err := listen(ctx, network, path)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeStale(ctx, network, path); err != nil {
			return nil, err
		}
		listener, err = listen(ctx, network, path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("protect socket %s: %w", path, err), listener.Close())
	}
	return listener, nil
}

func listen(ctx context.Context, network, path string) (*net.UnixListener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, network, path)
	if err != nil {
		return nil, err
	}
	return listener.(*net.UnixListener), nil //nolint:errcheck,forcetypeassert // what these networks are documented to give
}

// removeStale removes a socket that nobody serves.
func removeStale(ctx context.Context, network, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is in the way and no socket, move it away: %w", path, errdefs.ErrAlreadyExists)
	}
	connection, err := (&net.Dialer{Timeout: answerTimeout}).DialContext(ctx, network, path)
	if err == nil {
		return errors.Join(
			fmt.Errorf("socket %s is served by another process, stop that one first or choose another path: %w", path, errdefs.ErrAlreadyExists),
			connection.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("find out who serves socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket %s: %w", path, err)
	}
	return nil
}
