//go:build failpoints

package failpoint

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// EnvFile names the file that arms a fail point by containing its name. The process
// removes the file before it ends, so that its successor does not end there as well.
const EnvFile = "AMBIPOD_FAILPOINT_FILE"

// EnvClock is by how much the wall clock is wrong, in time.ParseDuration's format.
const EnvClock = "AMBIPOD_FAILPOINT_CLOCK"

// Hit ends the process when a test has armed the fail point of that name.
func Hit(name string) {
	path := os.Getenv(EnvFile)
	if path == "" {
		return
	}
	// Only one goroutine gets to remove the file.
	if armed, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(armed)) != name || os.Remove(path) != nil { //nolint:gosec // a test names the file
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
