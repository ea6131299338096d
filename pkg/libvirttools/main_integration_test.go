//go:build integration

package libvirttools_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/tests/libvirtd"
)

// shared is the libvirtd of all tests of this package, which run one at a time:
// its first connection costs seconds. A test that harms it repairs it.
var shared struct {
	once     sync.Once
	dir      string
	instance *libvirtd.Instance
	err      error
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := stopShared(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// daemon returns the shared libvirtd, running.
func daemon(t *testing.T) *libvirtd.Instance {
	t.Helper()
	shared.once.Do(func() {
		shared.dir, shared.err = os.MkdirTemp("/var/tmp", "lvt") //nolint:usetesting // outlives this test
		if shared.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		shared.instance, shared.err = libvirtd.Start(ctx, libvirtd.Options{Dir: shared.dir})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	if !shared.instance.Libvirtd.Alive() {
		if err := shared.instance.StartLibvirtd(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	return shared.instance
}

func stopShared() error {
	if shared.dir == "" {
		return nil
	}
	var err error
	if shared.instance != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = shared.instance.Stop(ctx)
	}
	if removeErr := os.RemoveAll(shared.dir); err == nil {
		err = removeErr
	}
	return err
}

// deadline is far beyond what any test needs, even on a busy machine.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
