package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen opens the socket for kubelet, readable by its owner only. What a dead
// proxy has left at the path is replaced; a socket that someone serves is an error.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	// Others keep their sockets in this folder too; see pkg/layout about the mode.
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil { //nolint:gosec // passable for QEMU's user, not listable
		return nil, fmt.Errorf("create the socket's folder: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// The mode must be right from the first moment, not after a chmod.
	old := unix.Umask(0o177)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return listener, nil
}

// removeStale makes way for a new socket unless the one at path is in use.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket: remove it or listen elsewhere", path)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close() // nothing was sent
		return fmt.Errorf("socket %s is in use by another process: stop it or listen elsewhere", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("see whether socket %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale socket %s: %w", path, err)
	}
	return nil
}
