package volumes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// shareSocket is the descriptor of the listening socket in the server's processes:
// the first one after the standard three.
const shareSocket = 3

// arguments are what the launcher's command line continues with; parseShare reads them.
func (s Share) arguments() []string {
	return []string{s.Source, mountpoint(s), s.Group, strconv.FormatBool(s.ReadOnly), strconv.FormatBool(s.Follow)}
}

// RunShare is what ShareServer's launcher does, with the arguments that it was
// given: in a mount namespace of its own it makes the folder appear as it is to be
// served, then starts virtiofsd, which outlives it. join puts the calling process
// into a control group.
func RunShare(virtiofsd string, arguments []string, join func(group string) error) error {
	const count = 5
	if len(arguments) != count {
		return fmt.Errorf("serve folder: %d arguments instead of %d: %w", len(arguments), count, errdefs.ErrInvalidArgument)
	}
	source, target, group := arguments[0], arguments[1], arguments[2]
	readOnly, follow := arguments[3] == "true", arguments[4] == "true"
	if err := join(group); err != nil {
		return err
	}
	if err := mountShare(source, target, readOnly, follow); err != nil {
		return fmt.Errorf("serve folder %s: %w", source, err)
	}
	if err := raiseOpenFiles(); err != nil {
		return err
	}
	// Only fixed words and a path of our own reach the command line.
	cmd := exec.Command(virtiofsd, "-f", "--fd="+strconv.Itoa(shareSocket), "--rlimit-nofile=0", //nolint:noctx // it outlives us
		"-o", strings.Join([]string{
			"source=" + target,
			"sandbox=namespace",
			"modcaps=-mknod", // device nodes are the node's, not its guests'
			"announce_submounts",
			"log_level=err",
		}, ","))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(shareSocket, "socket")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: install the package qemu-system-common, or name its virtiofsd by --virtiofsd: %w", err, errdefs.ErrFailedPrecondition)
		}
		return fmt.Errorf("start virtiofsd: %w", err)
	}
	return cmd.Process.Release()
}

// mountShare mounts source at target for this process and its children. Nothing of
// it reaches the node, and later mounts of the node only show where follow says so.
func mountShare(source, target string, readOnly, follow bool) (err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("leave the node's mounts: %w", err)
	}
	folder, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(folder)) }()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", folder), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind it to %s: %w", target, err)
	}
	attributes := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	if readOnly {
		attributes.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !follow {
		attributes.Propagation = unix.MS_PRIVATE
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attributes); err != nil {
		return fmt.Errorf("set attributes of its mount: %w", err)
	}
	return nil
}

// raiseOpenFiles lets the server have as many files open as this machine allows;
// it holds one for each that the guest knows. That the limit is set explicitly also
// keeps Go from giving the old one to children.
func raiseOpenFiles() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}
