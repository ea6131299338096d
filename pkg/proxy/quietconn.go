package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quietConn is a connection over a unix socket whose reads and writes do not
// tell Go's scheduler that they enter the kernel. They never wait there, so the
// scheduler has nothing to do about them, but being told it wakes its monitor
// thread each time that the process had nothing to do before. With one call at a
// time that is at every message: a futex call, a thread switch and a processor
// taken from the process that is to answer, a tenth of the time of a call.
//
// Waiting is the network poller's, as in every net.Conn.
type quietConn struct {
	net.Conn
	raw   syscall.RawConn
	read  transfer
	write transfer
}

// transfer is one direction of a quietConn.
type transfer struct {
	mu    sync.Mutex    // one at a time
	data  []byte        // guarded by mu; what is left to fill or send
	n     int           // guarded by mu; bytes of the last transfer
	errno syscall.Errno // guarded by mu
	try   func(fd uintptr) bool
}

// quiet makes a connection quiet; one that is no socket stays as it is.
func quiet(conn net.Conn) net.Conn {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return conn
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return conn // closed already: its user will see that
	}
	c := &quietConn{Conn: conn, raw: raw}
	c.read.try = func(fd uintptr) bool { return c.read.attempt(fd, unix.SYS_RECVFROM, 0) }
	c.write.try = func(fd uintptr) bool { return c.write.attempt(fd, unix.SYS_SENDTO, unix.MSG_NOSIGNAL) }
	return c
}

// attempt transfers what it can at once; false means: wait until there is more.
func (t *transfer) attempt(fd, call, flags uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(t.data))), uintptr(len(t.data)), flags|unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // used within the call
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		case 0:
			t.n, t.errno = int(n), 0
			return true
		default:
			t.n, t.errno = 0, errno
			return true
		}
	}
}

func (c *quietConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := &c.read
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = p
	err := c.raw.Read(t.try)
	t.data = nil
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, t.errno
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

func (c *quietConn) Write(p []byte) (int, error) {
	t := &c.write
	t.mu.Lock()
	defer t.mu.Unlock()
	defer func() { t.data = nil }()
	t.data = p
	for len(t.data) > 0 {
		if err := c.raw.Write(t.try); err != nil {
			return len(p) - len(t.data), err
		}
		if t.errno != 0 {
			return len(p) - len(t.data), t.errno
		}
		t.data = t.data[t.n:]
	}
	return len(p), nil
}

// quietListener makes the connections that it accepts quiet.
type quietListener struct{ net.Listener }

func (l quietListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return quiet(conn), nil
}
