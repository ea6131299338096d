// Command vmguest runs in a guest and gives the node's commands their streams; the
// node sends it there and starts it with the token of the conversation and the open port. It
// removes its own file at once and ends when the node goes away. See docs/exec.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ambipod/ambipod/pkg/guestexec/guest"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmguest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 || len(args[0]) == 0 || strings.HasPrefix(args[0], "-") {
		return errors.New("it is started by vmruntime inside a guest, with the token of the conversation as its argument")
	}
	if err := removeSelf(); err != nil {
		return err
	}
	// Reads of a port that does not block can be ended by closing it.
	if err := syscall.SetNonblock(wire.PortDescriptor, true); err != nil {
		return fmt.Errorf("use the port %s: %w", wire.Port, err)
	}
	syscall.CloseOnExec(wire.PortDescriptor) // no command shall have it
	return guest.Serve(ctx, os.NewFile(wire.PortDescriptor, wire.Port), args[0])
}

// removeSelf removes the folder that the node made for this program, and nothing
// else: a copy that a person put elsewhere stays.
func removeSelf() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find my own file: %w", err)
	}
	dir := filepath.Dir(self)
	if !strings.HasPrefix(filepath.Base(dir), wire.FolderPrefix) {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove my own file: %w", err)
	}
	return nil
}
