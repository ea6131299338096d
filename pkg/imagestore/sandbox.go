package imagestore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	limiter         = "prlimit" // of util-linux; the limits only ever go down
	maxToolOutput   = 64 << 10  // bytes of a program's messages that are kept
	maxErrorExcerpt = 300
	killDelay       = time.Second
	exitNotFound    = 127 // of prlimit, when there is no such program
)

// sandboxed prepares a program that reads what a stranger made: as QEMU's user if
// there is one, with no way to write a file, and under more limits of prlimit.
func sandboxed(ctx context.Context, as *Owner, limits []string, program ...string) *exec.Cmd {
	args := append([]string{"--fsize=0", "--nofile=64", "--core=0"}, limits...)
	args = append(append(args, "--"), program...)
	cmd := exec.CommandContext(ctx, limiter, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = killDelay
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: uint32(as.UID), Gid: uint32(as.GID), //nolint:gosec // G115: a user and a group of this machine
		}}
	}
	return cmd
}

// missing tells in an error which packages to install, if a program is not there.
func missing(err error, program, packages string) error {
	var exit *exec.ExitError
	if errors.Is(err, exec.ErrNotFound) || (errors.As(err, &exit) && exit.ExitCode() == exitNotFound) {
		return classed(errdefs.ErrUnavailable, "%s cannot be run; install the packages %s and util-linux: %w", program, packages, err)
	}
	return nil
}

// excerpt makes what a program or a server says fit into one sentence.
func excerpt(output string) string {
	output = strings.Join(strings.Fields(strings.ToValidUTF8(output, "?")), " ")
	if len(output) > maxErrorExcerpt {
		return strings.ToValidUTF8(output[:maxErrorExcerpt], "") + "…"
	}
	return output
}

// limitedBuffer keeps the first bytes written to it.
type limitedBuffer struct {
	bytes.Buffer
	room int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	kept := p[:min(len(p), b.room)]
	b.room -= len(kept)
	b.Buffer.Write(kept)
	return len(p), nil
}
