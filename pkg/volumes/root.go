package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// modeDisk lets QEMU's user alone read and write a disk.
const modeDisk = 0o600

// Root describes a VM's root disk.
type Root struct {
	Path        string // of the overlay, absolute
	Base        string // image file, absolute
	BaseFormat  string // of the image: qcow2 or raw
	VirtualSize int64  // bytes of the image as the guest sees it
	Size        int64  // bytes that the guest shall see, 0 for the image's
	UID, GID    int    // QEMU's user
}

// CreateRoot makes a root disk. An existing one is replaced: it was never booted, or
// it would have a record. The disk has its name only when it is complete.
//
// A Size below the image's is errdefs.ErrInvalidArgument: the guest's file system
// would be cut off.
func CreateRoot(ctx context.Context, root Root) (err error) {
	size := root.Size
	if size == 0 {
		size = root.VirtualSize
	}
	if size < root.VirtualSize {
		return fmt.Errorf("root disk of %d bytes is smaller than its image of %d, ask for at least as much: %w",
			size, root.VirtualSize, errdefs.ErrInvalidArgument)
	}
	temporary := root.Path + ".new"
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create root disk %s: %w", root.Path, err), removeIfThere(temporary))
		}
	}()
	if err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-F", root.BaseFormat, "-b", root.Base, temporary, strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	if err := os.Chmod(temporary, modeDisk); err != nil {
		return err
	}
	if err := os.Chown(temporary, root.UID, root.GID); err != nil {
		return err
	}
	return os.Rename(temporary, root.Path)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// qemuImg runs qemu-img; its error has the program's own words.
func qemuImg(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, "qemu-img", args...)
	var words bytes.Buffer
	command.Stdout, command.Stderr = &words, &words
	err := command.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w, install qemu-utils: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(words.String()))
	}
	return nil
}
