//go:build failpoints

package failpoint

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// Hit ends the process when a test has armed the fail point of that name.
func Hit(name string) {
	path := os.Getenv(EnvFile)
	if path == "" {
		return
	}
	armed, err := os.ReadFile(path) //nolint:gosec // a test names the file
	wanted, how, _ := strings.Cut(strings.TrimSpace(string(armed)), " ")
	// Only one goroutine gets to remove the file.
	if err != nil || wanted != name || os.Remove(path) != nil {
		return
	}
	if how == "freeze" {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // not a step further
}

// Now is the wall clock, as wrong as a test wants it.
func Now() time.Time {
	wrong, err := time.ParseDuration(os.Getenv(EnvClock))
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(wrong)
}
