package proxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/ambipod/ambipod/pkg/statushttp"
)

// ServeMetrics serves /metrics, /healthz and /readyz at an address of
// statushttp.Serve until ctx ends.
func (p *Proxy) ServeMetrics(ctx context.Context, address string) error {
	return statushttp.Serve(ctx, address, p.statusPages())
}

func (p *Proxy) statusPages() statushttp.Options {
	return statushttp.Options{
		Metrics: p.node.metrics.registry,
		Ready: func(context.Context) error {
			v, release := p.current()
			defer release()
			if v == nil {
				return errors.New("criproxy is stopping")
			}
			if !v.fallback.isReady() {
				return fmt.Errorf("runtime %s does not answer at %s", v.fallback.name, v.fallback.socket)
			}
			return nil
		},
	}
}
