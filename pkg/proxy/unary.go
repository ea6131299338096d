package proxy

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// serveUnary answers one call of a unary method of the table.
func (p *Proxy) serveUnary(ctx context.Context, r *rule, request *frame) (*frame, error) {
	defer request.free()
	v, release := p.current()
	defer release()
	ctx = outgoing(ctx)
	switch r.do {
	case toEvery:
		return p.merged(ctx, v, r, request)
	case toEachBackend:
		return p.broadcast(ctx, v, r, request)
	case toOwner:
		return p.forward(ctx, v, r, request)
	default: // describe registers streams elsewhere
		return nil, status.Errorf(codes.Internal, "%s is no unary method", r.full)
	}
}

// forward sends a call to its owner.
func (p *Proxy) forward(ctx context.Context, v *view, r *rule, request *frame) (*frame, error) {
	b := v.fallback
	if r.hasSignals() {
		d, err := v.decide(r, request.bytes())
		if err != nil {
			return nil, err
		}
		if d.backend != nil {
			b = d.backend
		}
	}
	answer, err := b.exchange(ctx, r, request)
	if setErr := passMetadata(ctx, &answer); setErr != nil {
		return nil, setErr
	}
	if err != nil {
		return nil, err
	}
	return &answer.frame, nil
}

// exchange is call with the IDs rewritten on the way there and back.
func (b *backend) exchange(ctx context.Context, r *rule, request *frame) (reply, error) {
	if b.isDefault {
		return b.call(ctx, r.full, request)
	}
	bare, err := b.strip(r, request)
	if err != nil {
		return reply{}, err
	}
	answer, err := b.call(ctx, r.full, bare)
	if err != nil {
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
		b.name, r.method, r.answer.Descriptor().Name(), err)
}

func (b *backend) rewrites() rewrites { return rewrites{prefix: b.config.IDPrefix} }

// passMetadata gives the caller what the backend sent beside the message.
func passMetadata(ctx context.Context, r *reply) error {
	if header := withoutHopHeaders(r.header); len(header) > 0 {
		if err := grpc.SetHeader(ctx, header); err != nil {
			return err
		}
	}
	if trailer := withoutHopHeaders(r.trailer); len(trailer) > 0 {
		return grpc.SetTrailer(ctx, trailer)
	}
	return nil
}
