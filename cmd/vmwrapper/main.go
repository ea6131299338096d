// Command vmwrapper is the emulator of every domain: it fetches the pod's
// network descriptors from vmruntime and becomes QEMU.
package main

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/ambipod/ambipod/pkg/vmwrapper"
)

func main() {
	err := vmwrapper.Run(context.Background(), vmwrapper.Process{
		Args: os.Args,
		Env:  os.Environ(),
		EUID: os.Geteuid(),
		Exec: syscall.Exec,
	})
	fmt.Fprintln(os.Stderr, "vmwrapper:", err)
	os.Exit(1)
}
