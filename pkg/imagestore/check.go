package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Limits of qemu-img, which reads what a stranger made.
const (
	checkTimeout    = 5 * time.Minute
	checkCPU        = "--cpu=120"       // seconds
	checkMemory     = "--as=2147483648" // bytes of address space
	checkFileSize   = "--fsize=0"       // it has nothing to write
	checkFiles      = "--nofile=64"     // descriptors
	checkCore       = "--core=0"        // no dump of a stranger's image
	checkOutput     = 64 << 10          // bytes of its output that are kept
	exitCorrupt     = 2                 // of qemu-img check
	exitLeaks       = 3                 // clusters that nothing refers to; harmless
	checkedFile     = "/proc/self/fd/3" // the first of exec.Cmd.ExtraFiles
	checkerLimiter  = "prlimit"         // of util-linux
	checkerProgram  = "qemu-img"        // of qemu-utils
	checkPackages   = "qemu-utils and util-linux"
	maxErrorExcerpt = 300
)

// checkFunc judges the inside of a qcow2 file that inspect has passed.
type checkFunc func(ctx context.Context, file *os.File) error

// qemuImgCheck runs qemu-img check under limits, as QEMU's user if there is one.
// The file is handed over as a descriptor: the program needs no way to its folder.
func qemuImgCheck(as *Owner) checkFunc {
	return func(ctx context.Context, file *os.File) error {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, checkerLimiter,
			checkCPU, checkMemory, checkFileSize, checkFiles, checkCore, "--",
			checkerProgram, "check", "-q", "-f", string(FormatQCOW2), checkedFile)
		cmd.ExtraFiles = []*os.File{file}
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		cmd.Dir = "/"
		cmd.WaitDelay = time.Second
		if as != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
				Uid: uint32(as.UID), Gid: uint32(as.GID), //nolint:gosec // G115: a user and a group of this machine
			}}
		}
		output := &limitedBuffer{room: checkOutput}
		cmd.Stdout, cmd.Stderr = output, output
		return explainCheck(ctx, cmd.Run(), output.String())
	}
}

func explainCheck(ctx context.Context, err error, output string) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return classed(errNoDisk, "qemu-img check did not finish within %s", checkTimeout)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return classed(errdefs.ErrUnavailable, "%w; install the packages %s", err, checkPackages)
	case !errors.As(err, &exit):
		return fmt.Errorf("run qemu-img check: %w", err)
	}
	switch exit.ExitCode() {
	case exitLeaks:
		return nil
	case exitCorrupt:
		return classed(errNoDisk, "qemu-img check finds the image corrupt")
	case 127:
		return classed(errdefs.ErrUnavailable, "%s is not there; install the packages %s", checkerProgram, checkPackages)
	}
	return classed(errNoDisk, "qemu-img check refuses the image (%s: %s)", exit, excerpt(output))
}

// excerpt makes a program's output fit into one sentence.
func excerpt(output string) string {
	output = strings.Join(strings.Fields(strings.ToValidUTF8(output, "?")), " ")
	if len(output) > maxErrorExcerpt {
		return output[:maxErrorExcerpt] + "…"
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
