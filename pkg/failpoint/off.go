//go:build !failpoints

package failpoint

import "time"

// Hit ends the process when a test has armed the fail point of that name.
func Hit(string) {}

// Now is the wall clock.
func Now() time.Time { return time.Now() }
