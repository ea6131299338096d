package guestexec

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

const (
	maxHelper = 32 << 20 // bytes of the helper's program
	maxQuote  = 200      // of what the script says
)

// receive is the script that receives the helper's program over the port $1 and
// becomes it, in a folder that only root can enter. $0 is the folder's prefix, $2 the
// token, $3 the program's size; the other arguments are the places to try, of which
// the first counts where programs may be started: many guests forbid it in /run or
// /tmp. The shell reads lines byte by byte, so the program is left for head.
const receive = `umask 077
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
fail() {
	echo "$1" >&2
	exit 1
}
port=
for name in /sys/class/virtio-ports/*/name; do
	read -r found <"$name" && [ "$found" = "$1" ] && port=${name%/name}
done 2>/dev/null
[ -n "$port" ] || fail "the VM has no virtio-serial port $1"
port=/dev/${port##*/}
tries=20
until (exec 3<>"$port") 2>/dev/null; do
	tries=$((tries - 1))
	[ "$tries" -gt 0 ] || fail "port $port is held by another process"
	sleep 1
done
token=$2 size=$3
shift 3
folder=
for place; do
	folder=$(mktemp -d "$place/$0XXXXXX" 2>/dev/null) || continue
	program=$folder/vmguest
	printf '#!/bin/sh\nexit 0\n' >"$program" && chmod 700 "$program" && "$program" 2>/dev/null && break
	rm -rf "$folder"
	folder=
done
[ -n "$folder" ] || fail "no folder of the guest may hold a program"
exec 3<>"$port"
echo "AMBIPOD-READY 1 $token" >&3
while read -r line <&3; do
	if [ "$line" = "AMBIPOD-PROGRAM 1 $token" ]; then
		head -c "$size" <&3 >"$program" && exec "$program" "$token"
		break
	fi
done
rm -rf "$folder"
fail "the program did not arrive"`

// places is where the helper's program may be put until it runs.
var places = []string{"/run", "/var/tmp", "/tmp", "/dev/shm", "/root"}

// deliver has the helper received and started in the guest, over the node's end of
// the port, and returns the token that it has said hello with. When the context
// ends, the port's deadlines must, too.
func deliver(ctx context.Context, agent *guestagent.Agent, helper string, port net.Conn, reader *bufio.Reader) (string, error) {
	program, err := readHelper(helper)
	if err != nil {
		return "", err
	}
	// An earlier helper that still holds the port ends when it reads something that
	// is not of its session.
	if _, err := io.WriteString(port, strings.Repeat("\n", 64)); err != nil {
		return "", fmt.Errorf("wake an earlier helper up: %w", err)
	}
	token := rand.Text()
	argv := []string{"/bin/sh", "-c", receive, wire.FolderPrefix, wire.Port, token, strconv.Itoa(len(program))}
	pid, err := agent.Start(ctx, guestagent.Command{Argv: append(argv, places...)})
	if errdefs.IsAborted(err) {
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return "", fmt.Errorf("start the helper in the guest: %w", err)
	}
	verdict := watch(ctx, agent, pid, port)
	if err := verdict(exchange(port, reader, token, program)); err != nil {
		return "", fmt.Errorf("start the helper in the guest: %w", err)
	}
	return token, nil
}

// exchange sends the program when the guest is ready and hears whether it runs.
func exchange(port io.Writer, reader io.ByteReader, token string, program []byte) error {
	if err := wire.Await(reader, wire.Ready(token)); err != nil {
		return err
	}
	if _, err := port.Write(append([]byte(wire.Program(token)), program...)); err != nil {
		return fmt.Errorf("send its program: %w", err)
	}
	return wire.Await(reader, wire.Hello(token))
}

func readHelper(path string) ([]byte, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the helper for guests: %w", err)
	}
	if len(program) == 0 || len(program) > maxHelper {
		return nil, fmt.Errorf("helper for guests %s has %d bytes, build it anew: %w", path, len(program), errdefs.ErrFailedPrecondition)
	}
	return program, nil
}

// watch looks whether the script, or what it became, ends, and then ends the waiting
// for the port. The function that it returns ends the watch and adds what the script
// said to the error, if there is one.
func watch(ctx context.Context, agent *guestagent.Agent, pid int, port net.Conn) (verdict func(error) error) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		result guestagent.Result
		err    error
		ended  bool
		done   = make(chan struct{})
	)
	go func() {
		defer close(done)
		if result, err = agent.Wait(ctx, pid); ctx.Err() == nil {
			ended = true
			_ = port.SetDeadline(past)
		}
	}()
	return func(cause error) error {
		cancel()
		<-done
		switch {
		case cause == nil && !ended:
			return nil
		case !ended:
			return fmt.Errorf("%w: %w", cause, errdefs.ErrUnavailable)
		case err != nil:
			return err
		}
		return fmt.Errorf("it ended with exit code %d: %q: %w",
			result.ExitCode, result.Stderr[:min(len(result.Stderr), maxQuote)], ErrUnsupported)
	}
}
