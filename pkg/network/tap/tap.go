// Package tap makes and opens tap devices, the network cards' other ends.
//
// A device is persistent: it stays when the process that has it open ends, so
// that a VM can be restarted on it. Functions act in the network namespace of
// the calling thread (see package netns) and are safe for concurrent use.
package tap

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const device = "/dev/net/tun"

// flags must be the same each time that a device is opened: whole Ethernet
// frames, led by a virtio header that lets segmentation and checksums be left
// to whoever is at the other end.
const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// Create makes the persistent device name, with many queues or one.
func Create(name string, many bool) error {
	f, err := open(name, many)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1)
	if err != nil {
		err = fmt.Errorf("make tap %s persistent: %w", name, err)
	}
	return errors.Join(err, f.Close())
}

// Open returns descriptors of a device, made if absent, one for each queue, which a
// hypervisor can use without further rights. many says how it was made; with one
// queue only one descriptor can be open at a time.
func Open(name string, many bool, queues int) (files []*os.File, err error) {
	for range queues {
		f, err := open(name, many)
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func open(name string, many bool) (*os.File, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("open %s: %w: load the kernel module tun: %w", device, err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	if err := attach(fd, name, many); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func attach(fd int, name string, many bool) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tap name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if many {
		req.SetUint16(flags | unix.IFF_MULTI_QUEUE)
	} else {
		req.SetUint16(flags)
	}
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("tap %s is in use by another process, probably an earlier QEMU of this pod: %w",
			name, errdefs.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("attach to tap %s: %w", name, err)
	}
	return nil
}
