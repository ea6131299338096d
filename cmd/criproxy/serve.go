package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ambipod/ambipod/pkg/proxy"
)

// processors is how many processors run the proxy's goroutines. Each call is
// handed over between several of them; on one processor no hand-over wakes a
// thread, which takes 5 % off a call's time and keeps memory the same on nodes of
// any size. One is enough for thousands of calls a second; kubelet makes a few.
const processors = 1

// serve runs the proxy until SIGTERM.
func serve(o *options, config *proxy.Config, log *slog.Logger) error {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processors)
	}
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
	log.Info("serving the CRI", "socket", listener.Addr().String())
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
