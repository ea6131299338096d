package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

const (
	checkTimeout = 5 * time.Minute
	checkCPU     = "--cpu=120"       // seconds
	checkMemory  = "--as=2147483648" // bytes of address space
	checkedFile  = "/proc/self/fd/3" // the first of exec.Cmd.ExtraFiles

	// Exit statuses of qemu-img check.
	exitCorrupt = 2
	exitLeaks   = 3 // clusters that nothing refers to; harmless
)

// checkFunc judges the inside of a qcow2 file that inspect has passed.
type checkFunc func(ctx context.Context, file *os.File) error

// qemuImgCheck runs qemu-img check in the sandbox. The file is handed over as a
// descriptor: the program needs no way to its folder.
func qemuImgCheck(as *Owner) checkFunc {
	return func(ctx context.Context, file *os.File) error {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		cmd := sandboxed(ctx, as, []string{checkCPU, checkMemory},
			"qemu-img", "check", "-q", "-f", string(FormatQCOW2), checkedFile)
		output := &limitedBuffer{room: maxToolOutput}
		cmd.ExtraFiles = []*os.File{file}
		cmd.Stdout, cmd.Stderr = output, output
		return explainCheck(ctx, cmd.Run(), output.String())
	}
}

func explainCheck(ctx context.Context, err error, output string) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return classed(errNoDisk, "qemu-img check did not finish within %s", checkTimeout)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if err := missing(err, "qemu-img", "qemu-utils"); err != nil {
		return err
	}
	if !errors.As(err, &exit) {
		return fmt.Errorf("run qemu-img check: %w", err)
	}
	switch exit.ExitCode() {
	case exitLeaks:
		return nil
	case exitCorrupt:
		return classed(errNoDisk, "qemu-img check finds the image corrupt")
	}
	return classed(errNoDisk, "qemu-img check refuses the image (%s: %s)", exit, excerpt(output))
}
