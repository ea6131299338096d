package guestexec

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

const (
	chunk       = 512 << 10 // of the helper's program, in one command to the agent
	maxHelper   = 32 << 20
	maxFolder   = 200 // of a folder's name that the guest chose
	helperName  = "vmguest"
	tidyTimeout = 10 * time.Second
)

// prepare makes a folder that only root can enter, in the first place where programs
// may be started (many guests forbid it in /run or /tmp), and prints its name. The
// places are its arguments, the folder's prefix is $0.
const prepare = `umask 077
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
for place; do
	dir=$(mktemp -d "$place/$0XXXXXX" 2>/dev/null) || continue
	if printf '#!/bin/sh\nexit 0\n' >"$dir/try" && chmod 700 "$dir/try" && "$dir/try" && : >"$dir/` + helperName + `"; then
		rm "$dir/try" && chmod 700 "$dir/` + helperName + `" && echo "$dir" && exit 0
	fi 2>/dev/null
	rm -rf "$dir"
done
echo "no folder of the guest may hold a program" >&2
exit 1`

// places is where the helper's program may be put until it runs.
var places = []string{"/run", "/var/tmp", "/tmp", "/dev/shm", "/root"}

// Arguments of the guest's shell; what comes after the script is its $0.
var (
	shell    = []string{"/bin/sh", "-c"}
	appendTo = `cat >>"$0"`
	remove   = `rm -rf "$0"`
)

// deliver sends the helper's program into the guest and starts it. The token that it
// returns is the helper's for its hello.
//
// flush is the node's end of the port: an earlier helper that still holds it ends
// when it reads something that is not of its session.
func deliver(ctx context.Context, agent *guestagent.Agent, helper string, flush io.Writer) (token string, err error) {
	program, err := readHelper(helper)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(flush, strings.Repeat("\n", 64)); err != nil {
		return "", fmt.Errorf("wake an earlier helper up: %w", err)
	}
	folder, err := prepareFolder(ctx, agent)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tidy(ctx, agent, folder))
		}
	}()
	target := path.Join(folder, helperName)
	for part := range slices.Chunk(program, chunk) {
		if _, err := inGuest(ctx, agent, guestagent.Command{Argv: append(slices.Clone(shell), appendTo, target), Stdin: part}); err != nil {
			return "", fmt.Errorf("send the helper into the guest: %w", err)
		}
	}
	token = rand.Text()
	if _, err := agent.Start(ctx, guestagent.Command{Argv: []string{target, token}}); err != nil {
		return "", fmt.Errorf("start the helper in the guest: %w", unsupported(err))
	}
	return token, nil
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

func prepareFolder(ctx context.Context, agent *guestagent.Agent) (string, error) {
	argv := append(slices.Clone(shell), prepare, wire.FolderPrefix)
	result, err := inGuest(ctx, agent, guestagent.Command{Argv: append(argv, places...)})
	if err != nil {
		return "", fmt.Errorf("prepare the guest for the helper: %w", err)
	}
	folder := strings.TrimSuffix(string(result.Stdout), "\n")
	if !path.IsAbs(folder) || len(folder) > maxFolder || path.Clean(folder) != folder || !strings.HasPrefix(path.Base(folder), wire.FolderPrefix) {
		return "", fmt.Errorf("prepare the guest for the helper: it made the folder %q: %w", folder[:min(len(folder), maxFolder)], errdefs.ErrDataLoss)
	}
	return folder, nil
}

// tidy removes what was sent into the guest in vain.
func tidy(ctx context.Context, agent *guestagent.Agent, folder string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	_, err := inGuest(ctx, agent, guestagent.Command{Argv: append(slices.Clone(shell), remove, folder)})
	return err
}

// inGuest runs a program that must succeed.
func inGuest(ctx context.Context, agent *guestagent.Agent, c guestagent.Command) (guestagent.Result, error) {
	result, err := agent.Run(ctx, c)
	if err != nil {
		return result, unsupported(err)
	}
	if result.ExitCode != 0 {
		return result, fmt.Errorf("exit code %d: %q: %w", result.ExitCode, result.Stderr[:min(len(result.Stderr), 200)], ErrUnsupported)
	}
	return result, nil
}

// unsupported marks what the agent refuses: it would refuse the next attempt, too.
func unsupported(err error) error {
	if errdefs.IsAborted(err) {
		return fmt.Errorf("%w: %w", err, ErrUnsupported)
	}
	return err
}
