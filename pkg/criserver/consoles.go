package criserver

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/console"
	"github.com/ambipod/ambipod/pkg/layout"
)

// lastWordsTimeout bounds the wait for what an ended VM's console still holds.
const lastWordsTimeout = 5 * time.Second

// consoles has the followers that copy the serial output of running VMs to their
// pods' logs.
type consoles struct {
	watcher *console.Watcher
	logger  *slog.Logger
	lost    func() // called when output is missing in a log

	mu        sync.Mutex // guards followers
	followers map[string]*console.Follower
}

func newConsoles(logger *slog.Logger, lost func()) (*consoles, error) {
	watcher, err := console.NewWatcher(logger)
	if err != nil {
		return nil, err
	}
	return &consoles{watcher: watcher, logger: logger, lost: lost, followers: map[string]*console.Follower{}}, nil
}

// start follows a VM's console; a VM that is already followed, or whose pod wants no
// log, is left as it is.
func (c *consoles) start(vm container, files layout.VM) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.followers[vm.ID] != nil || vm.LogPath == "" {
		return nil
	}
	follower, err := console.Start(c.watcher, console.Options{
		Console: files.ConsoleLog(),
		Log:     vm.LogPath,
		State:   files.ConsoleState(),
		Logger:  c.logger.With("container", vm.ID),
		Lost:    c.lost,
	})
	if err != nil {
		return fmt.Errorf("log of VM %s: %w", vm.ID, err)
	}
	c.followers[vm.ID] = follower
	return nil
}

// finish copies the last words of a VM that has ended; no error if nobody follows it.
func (c *consoles) finish(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, lastWordsTimeout)
	defer cancel()
	if follower := c.take(id); follower != nil {
		return follower.Finish(ctx)
	}
	return nil
}

// close ends all followers while their VMs go on; the next process begins where
// they ended.
func (c *consoles) close(ctx context.Context) error {
	c.mu.Lock()
	ids := slices.Collect(maps.Keys(c.followers))
	c.mu.Unlock()
	for _, id := range ids {
		if follower := c.take(id); follower != nil {
			if err := follower.Stop(ctx); err != nil {
				c.logger.WarnContext(ctx, "log does not end well", "container", id, "err", err)
			}
		}
	}
	return c.watcher.Close()
}

func (c *consoles) reopen(ctx context.Context, id string) error {
	c.mu.Lock()
	follower := c.followers[id]
	c.mu.Unlock()
	if follower == nil {
		return fmt.Errorf("VM %s has no log to reopen: %w", id, errdefs.ErrFailedPrecondition)
	}
	return follower.Reopen(ctx)
}

// take removes and returns the follower of a VM, nil if it has none.
func (c *consoles) take(id string) *console.Follower {
	c.mu.Lock()
	defer c.mu.Unlock()
	follower := c.followers[id]
	delete(c.followers, id)
	return follower
}
