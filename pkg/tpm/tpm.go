// Package tpm gives VMs a TPM 2.0: for each of them it starts a swtpm, which keeps
// what the guest trusts to it in a folder of the VM's.
//
// A swtpm is no daemon of the node's but a part of its VM: it is in the pod's control
// group before it does anything, runs as QEMU's user under its own seccomp filter, sees
// what that user sees, and ends when QEMU lets go of it. It does not belong to the
// process that has started it, so VMs keep their TPM over restarts of vmruntime.
//
// To get there, the server starts a launcher as root, which is this program called
// anew: it joins the group, gives up its rights and becomes swtpm (Run). Functions may
// be called concurrently for different VMs.
package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// TPM is one VM's.
type TPM struct {
	State  string // folder for what it keeps; made if absent, and then QEMU's user's
	Socket string // where QEMU finds it
	Group  string // control group that it joins before it does anything
}

// Server starts TPMs.
type Server struct {
	Program string // swtpm's path
	// Launcher is a command line that calls Run with the options after it.
	Launcher []string
	UID, GID int // QEMU's user and group
}

// socketDescriptor is that of the listening socket in the launcher: the first one
// after the standard three.
const socketDescriptor = 3

// Check tells whether there is a swtpm to start; errdefs.ErrFailedPrecondition if not.
func (s Server) Check() error {
	if _, err := os.Stat(s.Program); err != nil {
		return fmt.Errorf("find the TPM's emulator: %w: install the Debian package swtpm on the node, or name its program by --swtpm: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Start returns when the TPM waits for QEMU. Until QEMU has come, only the end of its
// control group ends it.
func (s Server) Start(ctx context.Context, t TPM) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start TPM at %s: %w", t.Socket, err)
		}
	}()
	if err := errors.Join(s.Check(), s.makeState(t.State)); err != nil {
		return err
	}
	listener, err := unixsocket.Listen(ctx, t.Socket, s.UID, s.GID)
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false) // it is the TPM's
	defer func() { err = errors.Join(err, listener.Close()) }()
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()

	arguments := append(s.Launcher[1:len(s.Launcher):len(s.Launcher)], s.Program, t.State, t.Group, strconv.Itoa(s.UID), strconv.Itoa(s.GID))
	cmd := exec.CommandContext(ctx, s.Launcher[0], arguments...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var said bytes.Buffer // swtpm closes it when it goes on in the background
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(said.String()), " "))
	}
	return nil
}

func (s Server) makeState(dir string) error {
	const private = 0o700
	if err := os.Mkdir(dir, private); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chown(dir, s.UID, s.GID)
}

// Run is what the launcher does, with the arguments that it was given: it becomes
// swtpm, and returns only with an error. join puts the calling process into a control
// group.
func Run(arguments []string, join func(group string) error) error {
	const count = 5
	if len(arguments) != count {
		return fmt.Errorf("run TPM: %d arguments instead of %d: %w", len(arguments), count, errdefs.ErrInvalidArgument)
	}
	swtpm, state, group := arguments[0], arguments[1], arguments[2]
	uid, uidErr := strconv.Atoi(arguments[3])
	gid, gidErr := strconv.Atoi(arguments[4])
	if err := errors.Join(uidErr, gidErr); err != nil {
		return fmt.Errorf("run TPM: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := join(group); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("run TPM as user %d: %w", uid, err)
	}
	// Only fixed words and a path of our own reach the command line.
	err := syscall.Exec(swtpm, []string{
		swtpm, "socket", "--tpm2", "--daemon", "--terminate",
		"--tpmstate", "dir=" + state + ",mode=0600", "--ctrl", "type=unixio,fd=" + strconv.Itoa(socketDescriptor),
	}, os.Environ())
	return fmt.Errorf("run %s: %w", swtpm, err)
}
