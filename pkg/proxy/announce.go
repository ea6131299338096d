package proxy

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// notice is a request that every backend is to hear, whenever it comes up.
type notice struct {
	rule    *rule
	request *frame
}

// broadcast tells every backend. Those that are absent are told when they come
// back; what the default says is the answer.
func (p *Proxy) broadcast(ctx context.Context, v *view, r *rule, request *frame) (*frame, error) {
	request.bytes() // in one piece before it is shared
	for _, b := range v.backends[1:] {
		b.announce(r, request)
	}
	answer, err := v.fallback.call(ctx, r.full, request.share(), v.fallback.patiently())
	if metadataErr := passMetadata(ctx, &answer); metadataErr != nil {
		return nil, metadataErr
	}
	if err != nil {
		return nil, err
	}
	return &answer.frame, nil
}

// announce tells the backend something now, if it is there, and again whenever
// it has come back. Nobody waits for it.
func (b *backend) announce(r *rule, request *frame) {
	b.mu.Lock()
	b.notice = &notice{rule: r, request: request.share()}
	b.mu.Unlock()
	if b.isReady() {
		b.wg.Go(b.retell)
	}
}

// retell sends the last announcement, if there is one.
func (b *backend) retell() {
	b.mu.Lock()
	n := b.notice
	b.mu.Unlock()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, refreshLimit)
	defer cancel()
	if _, err := b.call(ctx, n.rule.full, n.request.share()); err != nil {
		b.log.Warn("runtime refuses an announcement", "method", n.rule.method, "error", err)
	}
}

// greet brings a backend that has just connected up to date, and the proxy's
// knowledge of it.
func (p *Proxy) greet(ctx context.Context, b *backend) {
	b.retell() //nolint:contextcheck // ctx is the backend's own, which retell uses
	for _, r := range append(slices.Clone(p.rules.kept), p.rules.runtime("Status")) {
		if err := b.source(r).refresh(ctx); err != nil {
			b.log.Debug("list after connecting", "method", r.method, "error", err)
		}
	}
	b.learnCgroupDriver(ctx, p.rules.runtime("RuntimeConfig"))
	v, release := p.current()
	defer release()
	if v != nil {
		v.compareCgroupDrivers()
	}
	b.greeted.Store(true)
}

// learnCgroupDriver asks how the backend makes cgroups. An old one does not know
// the question.
func (b *backend) learnCgroupDriver(ctx context.Context, r *rule) {
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	answer, err := b.call(ctx, r.full, &frame{})
	if err != nil {
		b.log.Debug("ask for the cgroup driver", "error", err)
		return
	}
	var config runtimeapi.RuntimeConfigResponse
	if err := proto.Unmarshal(answer.frame.bytes(), &config); err != nil {
		b.log.Warn("runtime sends no readable configuration", "error", err)
		return
	}
	if config.GetLinux() == nil {
		return
	}
	driver := config.GetLinux().GetCgroupDriver().String()
	b.cgroups.Store(&driver)
}

// compareCgroupDrivers reports every backend that makes cgroups in another way
// than the default, whose answer kubelet follows: the limits that kubelet puts
// on a pod would not hold its processes.
func (v *view) compareCgroupDrivers() {
	for _, b := range v.backends[1:] {
		trouble := v.cgroupTrouble(b)
		b.meters.mismatched(trouble != "")
		if trouble != "" {
			b.log.Error(trouble)
		}
	}
}

// cgroupTrouble is a sentence about a backend whose cgroup driver differs from
// the default's, empty if it does not or is not known.
func (v *view) cgroupTrouble(b *backend) string {
	own, theirs := v.fallback.cgroups.Load(), b.cgroups.Load()
	if own == nil || theirs == nil || *own == *theirs {
		return ""
	}
	return "cgroup driver of runtime " + b.name + " is " + *theirs + " but that of " + v.fallback.name + " is " + *own +
		": configure both alike, or pod limits will not hold"
}
