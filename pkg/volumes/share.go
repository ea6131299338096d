package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// Share is a folder of the node that a VM is to see.
type Share struct {
	Source   string // the folder; links on the way to it are followed
	ReadOnly bool   // also what is mounted below it
	// Follow lets what the node mounts below the folder later appear in the guest,
	// and vanish when it is unmounted.
	Follow bool
	Socket string // where QEMU finds the folder's server; a folder for its own use is made beside it
	Group  string // control group that the server joins before it does anything
}

// ShareServer starts the servers of shared folders: virtiofsd, confined to its
// folder by namespaces and to its purpose by seccomp.
type ShareServer struct {
	// Launcher is a command line that calls RunShare with the options after it.
	Launcher []string
	UID, GID int // QEMU's user and group, who alone may connect
}

// Serving is a share whose server was started.
type Serving struct {
	source string
	errors *os.File // what the server has to say about its start
}

// Serve starts the server of one folder. It belongs to nobody: it ends when QEMU
// disconnects, and until one has connected by the end of its control group.
func (s ShareServer) Serve(ctx context.Context, share Share) (_ *Serving, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("share folder %s: %w", share.Source, err)
		}
	}()
	if info, err := os.Stat(share.Source); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("it is missing or no folder: %w", errors.Join(err, errdefs.ErrNotFound))
	}
	listener, err := unixsocket.Listen(ctx, share.Socket, s.UID, s.GID)
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // it is the server's
	defer func() { err = errors.Join(err, listener.Close()) }()
	socket, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	if err := os.MkdirAll(mountpoint(share), 0o700); err != nil {
		return nil, err
	}
	return s.launch(ctx, share, socket)
}

// mountpoint is where the server sees its folder, and nobody else does.
func mountpoint(share Share) string { return share.Socket + ".d" }

func (s ShareServer) launch(ctx context.Context, share Share, socket *os.File) (*Serving, error) {
	output, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	serving := &Serving{share.Source, output}
	arguments := append(s.Launcher[1:len(s.Launcher):len(s.Launcher)], share.arguments()...)
	cmd := exec.CommandContext(ctx, s.Launcher[0], arguments...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.Stderr = input
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	err = errors.Join(cmd.Run(), input.Close())
	if err != nil {
		return nil, errors.Join(err, serving.Problem(), serving.Close())
	}
	return serving, nil
}

// Problem is what the server said, if anything, for instance when QEMU could not
// connect to it.
func (s *Serving) Problem() error {
	const most, patience = 4 << 10, 100 * time.Millisecond
	if err := s.errors.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var text strings.Builder
	_, err := io.Copy(&text, io.LimitReader(s.errors, most))
	said := strings.Join(strings.Fields(text.String()), " ")
	switch {
	case said != "":
		return fmt.Errorf("server of folder %s said: %s", s.source, said)
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	return nil
}

// Close stops listening to what the server says; it goes on.
func (s *Serving) Close() error { return s.errors.Close() }
