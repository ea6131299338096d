package proxy

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// serveUnary answers one call of a unary method of the table.
func (p *Proxy) serveUnary(ctx context.Context, r *rule, request *frame) (*frame, error) {
	v, release := p.current()
	defer release()
	defer request.free()
	started := time.Now()
	answer, where, err := p.answer(outgoing(ctx), v, r, request)
	p.logCall(ctx, r, request, where, started, err)
	return answer, err
}

// answer treats a call as its rule says; where tells people who has answered.
func (p *Proxy) answer(ctx context.Context, v *view, r *rule, request *frame) (answer *frame, where string, err error) {
	switch r.do {
	case toOwner:
		return p.forward(ctx, v, r, request)
	case toEvery:
		answer, err = p.merged(ctx, v, r, request)
		return answer, "all", err
	case toEachBackend:
		answer, err = p.broadcast(ctx, v, r, request)
		return answer, "all", err
	default: // streams are registered as such
		return nil, "", status.Errorf(codes.Internal, "%s is no unary method", r.full)
	}
}

// forward sends a call to its owner.
func (p *Proxy) forward(ctx context.Context, v *view, r *rule, request *frame) (answer *frame, where string, err error) {
	b := v.fallback
	if r.hasSignals() {
		d, err := v.decide(r, request.bytes())
		if err != nil {
			return nil, "", err
		}
		if d.backend != nil {
			b = d.backend
		}
	}
	reply, err := b.exchange(ctx, r, request)
	if metadataErr := passMetadata(ctx, &reply); metadataErr != nil {
		return nil, b.name, metadataErr
	}
	if err != nil {
		return nil, b.name, err
	}
	b.note(r, request, &reply.frame)
	return &reply.frame, b.name, nil
}

// exchange is call with the IDs rewritten on the way there and back. The request
// stays as it is.
func (b *backend) exchange(ctx context.Context, r *rule, request *frame) (reply, error) {
	bare, err := b.strip(r, request)
	if err != nil {
		return reply{}, err
	}
	answer, err := b.call(ctx, r.full, bare, b.patiently())
	if err != nil || b.isDefault {
		return answer, err
	}
	defer answer.frame.free()
	whole, err := answer.frame.rewritten(r.response, b.rewrites().add)
	if err != nil {
		return reply{}, b.garbage(r, err)
	}
	return reply{frame: *whole, header: answer.header, trailer: answer.trailer}, nil
}

// strip takes the backend's prefix from the IDs in a request, which stays as it is.
func (b *backend) strip(r *rule, request *frame) (*frame, error) {
	if b.isDefault {
		return request.share(), nil
	}
	bare, err := request.rewritten(r.request, b.rewrites().strip)
	if err != nil {
		return nil, asStatus(r, err)
	}
	return bare, nil
}

// garbage is the answer to a call whose own answer cannot be read.
func (b *backend) garbage(r *rule, err error) error {
	return status.Errorf(codes.Internal, "runtime %s answers %s with bytes that are no %s: %v",
		b.name, r.method, r.answer.Name(), err)
}

func (b *backend) rewrites() rewrites { return rewrites{prefix: b.idPrefix} }
