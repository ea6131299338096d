package proxy

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// firstPassedFD is where systemd puts the first socket, sd_listen_fds(3).
const firstPassedFD = 3

// Listen opens the socket for kubelet, or takes the one that systemd has opened
// and passes on (LISTEN_FDS): that one outlives the proxy, so that callers wait
// in its queue while one proxy replaces another.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	passed, err := passedSocket(os.Getpid(), os.Getenv)
	if passed != nil || err != nil {
		return passed, err
	}
	// vmruntime may keep its sockets in this folder too; pkg/layout says why 0711.
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil { //nolint:gosec // passable, not listable
		return nil, fmt.Errorf("create the socket's folder: %w", err)
	}
	return unixsocket.Listen(ctx, path, os.Getuid(), os.Getgid())
}

// passedSocket is the socket that systemd has passed to this process, nil
// without error if there is none.
func passedSocket(pid int, getenv func(string) string) (net.Listener, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) || getenv("LISTEN_FDS") == "" {
		return nil, nil
	}
	if getenv("LISTEN_FDS") != "1" {
		return nil, fmt.Errorf("systemd passes LISTEN_FDS=%s sockets: the unit must have exactly one ListenStream", getenv("LISTEN_FDS"))
	}
	file := os.NewFile(firstPassedFD, "LISTEN_FD_3")
	listener, err := net.FileListener(file)
	if closeErr := file.Close(); err == nil && closeErr != nil {
		return nil, fmt.Errorf("close systemd's descriptor: %w", closeErr)
	}
	if err != nil {
		return nil, fmt.Errorf("use the socket that systemd passes: %w", err)
	}
	return listener, nil
}
