package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// BlockDevice returns the node in /dev of the block device that a path stands for.
// Kubelet names devices by links and by files in folders of its own, which QEMU's
// user cannot reach; the node is what libvirt can hand to it.
//
// Errors: errdefs.ErrNotFound when there is nothing at the path,
// errdefs.ErrInvalidArgument when it is no block device.
func BlockDevice(path string) (string, error) {
	number, err := deviceNumber(path)
	if err != nil {
		return "", fmt.Errorf("find block device %s: %w", path, err)
	}
	entry := fmt.Sprintf("/sys/dev/block/%d:%d/uevent", unix.Major(number), unix.Minor(number))
	text, err := os.ReadFile(entry)
	if err != nil {
		return "", fmt.Errorf("find block device %s: ask the kernel for its name: %w", path, err)
	}
	for line := range strings.Lines(string(text)) {
		name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME=")
		if !found {
			continue
		}
		node := filepath.Join("/dev", name)
		if found, err := deviceNumber(node); err != nil || found != number {
			return "", fmt.Errorf("find block device %s: the kernel calls it %s, which is another or missing: %w", path, node, errdefs.ErrNotFound)
		}
		return node, nil
	}
	return "", fmt.Errorf("find block device %s: %s does not name it: %w", path, entry, errdefs.ErrNotFound)
}

func deviceNumber(path string) (uint64, error) {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return 0, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
		return 0, fmt.Errorf("it is no block device: %w", errdefs.ErrInvalidArgument)
	}
	return stat.Rdev, nil
}
