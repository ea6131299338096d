// Package netns makes, enters and removes network namespaces that are bound to
// files, as ip-netns(8) does.
//
// A namespace lives as long as its file: no process needs to stay in it. All
// functions are safe for concurrent use. A thread that cannot return to its own
// namespace is never used again.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Create makes a namespace with its loopback interface up and binds it to the
// file path, which must not exist.
func Create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create network namespace %s: the file exists: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", path, err)
	}
	if err := errors.Join(f.Close(), bindNew(path)); err != nil {
		return errors.Join(fmt.Errorf("create network namespace %s: %w", path, err), Remove(path))
	}
	return nil
}

// bindNew does its work on a thread that is thrown away: it ends in the new
// namespace, where no other goroutine may ever run.
func bindNew(path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // without unlock: the thread dies with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := loopbackUp(); err != nil {
				return err
			}
			if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// Exists tells whether path is bound to a namespace.
func Exists(path string) bool { return ns.IsNSorErr(path) == nil }

// Remove unbinds the namespace and deletes its file. It is no error if there is
// none. A namespace that a process still uses ends when the process does.
func Remove(path string) error {
	// More than one mount can lie on the file when an earlier attempt was killed.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	// Deleting the file also detaches the copies of the mount that live in
	// other mount namespaces, which would keep the network namespace alive.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}

// Do runs f on a thread that is inside the namespace. f must not start
// goroutines that need to be there too.
func Do(path string, f func() error) error {
	n, err := open(path)
	if err != nil {
		return err
	}
	runErr := n.Do(func(ns.NetNS) error { return f() })
	if err := n.Close(); err != nil {
		return errors.Join(runErr, fmt.Errorf("close network namespace %s: %w", path, err))
	}
	return runErr
}

// Netlink opens a route netlink socket inside the namespace; the caller closes it.
func Netlink(path string) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := Do(path, func() error {
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in network namespace %s: %w", path, err)
	}
	return h, nil
}

func open(path string) (ns.NetNS, error) {
	n, err := ns.GetNS(path)
	if err == nil {
		return n, nil
	}
	var absent ns.NSPathNotExistErr
	var other ns.NSPathNotNSErr
	if errors.As(err, &absent) || errors.As(err, &other) {
		return nil, fmt.Errorf("network namespace %s is gone: %w", path, errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("open network namespace %s: %w", path, err)
}
