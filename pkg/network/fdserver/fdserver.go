// Package fdserver hands a VM's network descriptors to its vmwrapper.
//
// Whoever starts a VM makes a Grant under a new key and gives the key to the
// domain as an environment variable. vmwrapper, running as QEMU's user, presents
// the key over the unix socket and gets the descriptors, once. Before they leave,
// the process is admitted: moved to the pod's cgroup.
//
// A caller is judged by what the kernel says of it (SO_PEERCRED), not by what it
// says. A QEMU that a guest has taken over can also reach the socket: that is
// what single use, the check of the caller's program, size limits and deadlines
// are for. All methods of Server are safe for concurrent use; Serve owns all
// goroutines.
package fdserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/unixsocket"
)

const (
	// requestTimeout is how long a caller may take to send its request.
	requestTimeout = 5 * time.Second
	// grantTimeout is how long admitting, opening and replying may take.
	grantTimeout = 20 * time.Second
	// maxCallers bounds the callers that are served at once.
	maxCallers = 256

	// firstSlot is where slots are counted from when a grant names none;
	// libvirt fills its own from the lower end.
	firstSlot = 0x10
	// acceptPause is the wait after an accept that failed for want of resources.
	acceptPause = 100 * time.Millisecond
)

// Options configure a Server.
type Options struct {
	Socket string // path; replaced if nobody listens on it
	UID    int    // QEMU's user, owner of the socket and only allowed caller
	GID    int    // group of the socket
	// Executable, if set, is the only program that is served: vmwrapper's path. The
	// caller's file may be a copy, in the container of libvirtd. QEMU's other
	// processes have the same user.
	Executable string
	// VHostDevice, if it exists, is opened for every NIC: /dev/vhost-net.
	VHostDevice string
	Logger      *slog.Logger
}

// Grant is what a key stands for.
type Grant struct {
	// NICs are the VM's network cards. Empty Bus and Slot mean consecutive slots
	// from 0x10 of bus pci.0; VHost and Queues are set by the server.
	NICs []fdproto.NIC
	// Taps opens the taps of NICs in the same order, each with as many descriptors as
	// it has queues. The server closes them.
	Taps func(context.Context) ([][]*os.File, error)
	// Admit is called with the caller's process ID before any descriptor leaves.
	Admit func(pid int) error
}

// Server is a listening socket and the grants that are still to be used.
type Server struct {
	o        Options
	listener *net.UnixListener

	mu     sync.Mutex       // guards grants
	grants map[string]Grant // by key
}

// NewKey returns 128 random bits in hexadecimal.
func NewKey() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Listen opens the socket; callers wait until Serve runs.
func Listen(ctx context.Context, o Options) (*Server, error) {
	if o.UID == 0 {
		return nil, fmt.Errorf("descriptor server: QEMU's user is root, under which it is never run: name an unprivileged one: %w",
			errdefs.ErrInvalidArgument)
	}
	l, err := unixsocket.ListenPackets(ctx, o.Socket, o.UID, o.GID)
	if err != nil {
		return nil, fmt.Errorf("descriptor server: %w", err)
	}
	return &Server{o: o, listener: l, grants: map[string]Grant{}}, nil
}

// Grant makes the key good for one request. A key is used by one VM only.
func (s *Server) Grant(key string, g Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants[key] = g
}

// Revoke makes the key useless; it is no error if it has been used.
func (s *Server) Revoke(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.grants, key)
}

// take uses the key up.
func (s *Server) take(key string) (Grant, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.grants[key]
	delete(s.grants, key)
	return g, ok
}

// Serve answers callers until the context ends, then waits for those being
// served, closes the socket and removes it. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	var callers sync.WaitGroup
	slots := make(chan struct{}, maxCallers)
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() }) // ends Accept, which reports
	defer stop()
	var failure error
	for {
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				failure = conn.Close()
			}
			break
		}
		if err != nil && !transient(err) {
			failure = fmt.Errorf("descriptor server on %s: %w", s.o.Socket, err)
			break
		}
		if err != nil {
			s.o.Logger.Warn("descriptor server could not accept a caller", "err", err)
			wait(ctx, acceptPause)
			continue
		}
		slots <- struct{}{} // callers are bounded in time, so this is too
		callers.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
	callers.Wait()
	return errors.Join(failure, s.close())
}

func (s *Server) close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close descriptor socket: %w", err)
	}
	return nil
}

func transient(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNABORTED)
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve answers one caller. Its connection is closed when the server stops, so
// a caller that stays silent delays nothing.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // the connection ends next
	defer stop()
	defer conn.Close() //nolint:errcheck // nothing is lost by it
	ctx, cancel := context.WithTimeout(ctx, requestTimeout+grantTimeout)
	defer cancel()

	pid, err := s.answer(ctx, conn)
	if err == nil {
		s.o.Logger.Debug("network descriptors handed over", "pid", pid)
		return
	}
	s.o.Logger.Warn("network descriptors refused", "pid", pid, "err", err)
	// The caller may be gone or not read; then its refusal is in the log alone.
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	_ = fdproto.SendReply(conn, fdproto.Reply{Error: "vmruntime refused the network descriptors: " + err.Error()}, nil)
}

// answer returns the caller's process ID, 0 while unknown. The request is read
// before anything is refused: closing with unread data would lose the refusal.
func (s *Server) answer(ctx context.Context, conn *net.UnixConn) (int, error) {
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, err
	}
	request, err := fdproto.ReceiveRequest(conn)
	if err != nil {
		return 0, err
	}
	pid, err := s.identify(conn)
	if err != nil {
		return pid, err
	}
	g, ok := s.take(request.Key)
	if !ok {
		return pid, errors.New("the key is unknown, revoked or already used: a VM cannot be started from outside vmruntime; delete the pod and let it be created again")
	}
	if err := g.Admit(pid); err != nil {
		return pid, fmt.Errorf("admit process %d: %w", pid, err)
	}
	return pid, s.handOver(ctx, conn, g)
}

// identify asks the kernel who has connected.
func (s *Server) identify(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	pid := int(cred.Pid)
	if int(cred.Uid) != s.o.UID {
		return pid, fmt.Errorf("the caller's user is %d and only QEMU's user %d is served", cred.Uid, s.o.UID)
	}
	if pid == 0 {
		return pid, errors.New("the caller's process is in another PID namespace, so vmruntime cannot admit it: let vmruntime share the PID namespace of libvirtd")
	}
	return pid, checkProgram(pid, s.o.Executable)
}

func (s *Server) handOver(ctx context.Context, conn *net.UnixConn, g Grant) (err error) {
	taps, err := g.Taps(ctx)
	if err != nil {
		return err
	}
	files := slices.Concat(taps...)
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	if len(taps) != len(g.NICs) {
		return fmt.Errorf("%d taps were opened for %d network cards", len(taps), len(g.NICs))
	}
	var reply fdproto.Reply
	var ordered []*os.File
	for i, nic := range g.NICs {
		nic.Queues = len(taps[i])
		ordered = append(ordered, taps[i]...)
		if vhosts := s.openVHost(nic); vhosts != nil {
			nic.VHost = true
			files = append(files, vhosts...)
			ordered = append(ordered, vhosts...)
		}
		if nic.Slot == 0 {
			nic.Slot = firstSlot + i
		}
		reply.NICs = append(reply.NICs, nic)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	return fdproto.SendReply(conn, reply, ordered)
}

// openVHost returns a descriptor for each queue, or nil where the kernel cannot serve
// the card itself.
func (s *Server) openVHost(nic fdproto.NIC) (files []*os.File) {
	if s.o.VHostDevice == "" || nic.Model != "" && nic.Model != fdproto.ModelVirtio {
		return nil
	}
	for range nic.Pairs() {
		f, err := os.OpenFile(s.o.VHostDevice, os.O_RDWR, 0)
		if err != nil {
			s.o.Logger.Debug("network card without vhost", "mac", nic.MAC, "err", err)
			for _, f := range files {
				_ = f.Close() // nothing was done with it
			}
			return nil
		}
		files = append(files, f)
	}
	return files
}
