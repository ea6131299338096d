// Command vmctl is what a person types on a node to look after its VM pods; installed
// as kubectl-vm it is `kubectl vm`. docs/vmctl.md describes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ambipod/ambipod/pkg/vmctl"
)

// version is set by the linker.
var version = "development"

// Exit codes; exec and ssh also pass on those of what they run.
const (
	exitFailure = 1
	exitUsage   = 2 // the command line is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with its surroundings handed in; it returns the exit code.
func run(ctx context.Context, args []string, in *os.File, out, errOut io.Writer) int {
	a := newApp(args[0], in, out, errOut)
	command := a.command() //nolint:contextcheck // each verb has cobra's context, which is this one
	command.SetArgs(args[1:])
	err := command.ExecuteContext(ctx)
	var exit vmctl.ExitError
	switch usage := (usageError{}); {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code // it has said why itself
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(errOut, "%s: %v\n", a.name, err)
		return exitUsage
	default:
		_, _ = fmt.Fprintf(errOut, "%s: %s\n", a.name, oneSentence(err))
		return exitFailure
	}
}

// usageError marks errors of the command line.
type usageError struct{ error }

// oneSentence leaves out the classes at the end of an error, which are for programs.
func oneSentence(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	for _, class := range []string{"not found", "invalid argument", "failed precondition", "unavailable", "permission denied", "data loss", "not implemented"} {
		text = strings.TrimSuffix(text, ": "+class)
	}
	return text
}

// displayName is what people type: kubectl runs a plug-in kubectl-vm as `kubectl vm`.
func displayName(program string) string {
	name := filepath.Base(program)
	if plugin, ok := strings.CutPrefix(name, "kubectl-"); ok {
		return "kubectl " + plugin
	}
	return "vmctl"
}
