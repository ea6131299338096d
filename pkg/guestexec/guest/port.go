package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Where Linux shows virtio-serial ports and their names.
const (
	portNames   = "/sys/class/virtio-ports/*/name"
	deviceNodes = "/dev"
)

// busyRetry is how often a port that another process holds is tried again.
const busyRetry = 100 * time.Millisecond

// OpenPort opens the virtio-serial port of that name, without help of udev. A port
// has one user at a time: while an earlier helper still holds it, OpenPort waits
// until the context ends.
func OpenPort(ctx context.Context, name string) (*os.File, error) {
	node, err := findPort(portNames, name)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(busyRetry)
	defer retry.Stop()
	for {
		port, err := os.OpenFile(node, os.O_RDWR, 0)
		if !errors.Is(err, syscall.EBUSY) {
			return port, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("port %s is held by another process: %w", name, ctx.Err())
		case <-retry.C:
		}
	}
}

// findPort returns the device node of the port whose name is in one of the files.
func findPort(pattern, name string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return "", fmt.Errorf("list virtio-serial ports: %w", err)
	}
	for _, file := range files {
		found, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(found)) == name {
			return filepath.Join(deviceNodes, filepath.Base(filepath.Dir(file))), nil
		}
	}
	return "", fmt.Errorf("the VM has no virtio-serial port %s, it was made before Ambipod had commands with streams: create the pod anew", name)
}
