package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/proxy"
)

// processors is how many processors run the proxy's goroutines. Each call is
// handed over between several of them; on one processor no hand-over wakes a
// thread, which takes 5 % off a call's time and keeps memory the same on nodes of
// any size. One is enough for thousands of calls a second; kubelet makes a few.
const processors = 1

// A call leaves some 13 kB of garbage. Collected whenever the few megabytes in use
// have doubled, that takes 2 ms every few hundred calls and so sets the slowest
// hundredth of all calls; at garbagePercent it does so only every thousand calls. The
// collector works harder again when Go's memory, which does not contain the
// program itself, comes near to memoryLimit.
const (
	garbagePercent = 400
	memoryLimit    = 28 << 20
)

// tune adapts Go's runtime to a process that has little to do and is in the way
// of everything; who sets Go's own variables knows better.
func tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processors)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// serve runs the proxy until SIGTERM.
func serve(o *options, config *proxy.Config, log *slog.Logger) error {
	tune()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	listener, err := proxy.Listen(ctx, config.Listen)
	if err != nil {
		return err
	}
	p, err := proxy.New(config, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	var side sync.WaitGroup
	defer side.Wait()
	sideCtx, stopSide := context.WithCancel(ctx)
	defer stopSide()
	side.Go(func() { reloadOnHangup(sideCtx, o, config, p, log) })
	if config.MetricsAddress != "" {
		side.Go(func() {
			if err := p.ServeMetrics(sideCtx, config.MetricsAddress); err != nil {
				log.Error("no metrics", "error", err)
			}
		})
	}
	log.Info("serving the CRI", "socket", listener.Addr().String(), "version", version)
	return p.Run(ctx, listener)
}

// reloadOnHangup reads the configuration again at each SIGHUP. What only a
// restart can change stays as it is.
func reloadOnHangup(ctx context.Context, o *options, running *proxy.Config, p *proxy.Proxy, log *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		config, err := o.load()
		if err == nil {
			err = p.Reload(config)
		}
		if err != nil {
			log.Error("the configuration stays as it was", "error", err)
			continue
		}
		if config.Listen != running.Listen || config.StateDir != running.StateDir || config.MetricsAddress != running.MetricsAddress {
			log.Warn("listen, stateDir and metricsAddress take effect at the next start only")
		}
		log.Info("configuration read again", "runtimes", len(config.Backends))
	}
}
