package vmwrapper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambipod/ambipod/pkg/network/fdproto"
)

// Environment variables that the domain definition sets.
const (
	EnvSocket   = "AMBIPOD_FD_SOCKET" // vmruntime's socket
	EnvKey      = "AMBIPOD_FD_KEY"    // what to present there; unset: add no network
	EnvEmulator = "AMBIPOD_EMULATOR"  // QEMU's path; unset: DefaultEmulator
)

// DefaultEmulator is the QEMU to become.
const DefaultEmulator = "/usr/bin/qemu-system-x86_64"

// envPrefix begins the variables that QEMU does not get to see.
const envPrefix = "AMBIPOD_"

// timeout covers connecting and the whole answer of vmruntime.
const timeout = 30 * time.Second

// Process is what Run knows of its own process.
type Process struct {
	Args []string // with the program's name first
	Env  []string // KEY=value
	EUID int
	// Exec replaces the process, as syscall.Exec does.
	Exec func(path string, args, env []string) error
}

// Run becomes QEMU; it returns only with an error.
func Run(ctx context.Context, p Process) error {
	emulator := lookup(p.Env, EnvEmulator)
	if emulator == "" {
		emulator = DefaultEmulator
	}
	args := slices.Concat([]string{emulator}, p.Args[1:])
	if key := lookup(p.Env, EnvKey); key != "" {
		if p.EUID == 0 {
			return errors.New("QEMU is not run as root: set an unprivileged user in libvirt's qemu.conf")
		}
		var err error
		if args, err = addNetwork(ctx, args, lookup(p.Env, EnvSocket), key); err != nil {
			return err
		}
	}
	env := slices.DeleteFunc(slices.Clone(p.Env), func(kv string) bool { return strings.HasPrefix(kv, envPrefix) })
	if err := p.Exec(emulator, args, env); err != nil {
		return fmt.Errorf("run %s: %w", emulator, err)
	}
	return nil
}

func addNetwork(ctx context.Context, args []string, socket, key string) ([]string, error) {
	if socket == "" {
		return nil, fmt.Errorf("%s is not set: this program is started by libvirt with a domain that vmruntime made", EnvSocket)
	}
	reply, fds, err := fetch(ctx, socket, key)
	if err != nil {
		return nil, err
	}
	args, err = Command(args, reply.NICs, fds)
	if err != nil {
		return nil, fmt.Errorf("vmruntime's answer: %w", err)
	}
	for _, fd := range fds {
		if err := keepOnExec(fd); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return args, nil
}

func fetch(ctx context.Context, socket, key string) (fdproto.Reply, []int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, fdproto.Network, socket)
	if err != nil {
		return fdproto.Reply{}, nil, fmt.Errorf("vmruntime cannot be reached for the network: %w", err)
	}
	defer c.Close() //nolint:errcheck // nothing is lost by it
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fdproto.Reply{}, nil, fmt.Errorf("connection to %s is a %T", socket, c)
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return fdproto.Reply{}, nil, err
	}
	if err := fdproto.SendRequest(conn, key); err != nil {
		return fdproto.Reply{}, nil, err
	}
	return fdproto.ReceiveReply(conn)
}

func keepOnExec(fd int) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0); errno != 0 {
		return os.NewSyscallError("fcntl", errno)
	}
	return nil
}

func lookup(env []string, key string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, key+"="); ok {
			return value
		}
	}
	return ""
}
