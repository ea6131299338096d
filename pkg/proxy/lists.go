package proxy

import (
	"context"
	"slices"

	"google.golang.org/grpc/mem"
)

// merger makes one answer of the backends' parts, of which the default's is
// first if it is there at all. It takes the parts' buffers over.
type merger func(m *merging) (*frame, error)

// merging is what a merger has to work with.
type merging struct {
	view    *view
	rule    *rule
	request *frame
	parts   []*answer
}

// merged answers a call from all backends that can own a match.
func (p *Proxy) merged(ctx context.Context, v *view, r *rule, request *frame) (*frame, error) {
	parts, err := p.gather(ctx, v, r, request, exchange(r))
	if metadataErr := passMetadata(ctx, metadataOf(parts)); metadataErr != nil {
		return nil, metadataErr
	}
	if err != nil {
		return nil, err
	}
	return r.merge(&merging{view: v, rule: r, request: request, parts: parts})
}

// gather asks the backends side by side. On an error the parts hold no more than
// the metadata that came with it.
func (p *Proxy) gather(ctx context.Context, v *view, r *rule, request *frame, fetch fetcher) ([]*answer, error) {
	asked := v.backends
	if r.hasSignals() {
		d, err := v.decide(r, request.bytes())
		switch {
		case err != nil:
			return nil, err
		case d.nowhere:
			return nil, nil
		case d.backend != nil:
			asked = []*backend{d.backend}
		}
	}
	request.bytes() // in one piece before it is shared
	parts := make([]*answer, len(asked))
	errs := make([]error, len(asked))
	if len(asked) == 1 {
		parts[0], errs[0] = asked[0].source(r).ask(ctx, request, fetch)
	} else {
		done := make(chan struct{})
		for i, b := range asked {
			go func() {
				parts[i], errs[i] = b.source(r).ask(ctx, request, fetch)
				done <- struct{}{}
			}()
		}
		for range asked {
			<-done
		}
	}
	parts = slices.DeleteFunc(parts, func(a *answer) bool { return a == nil })
	for _, err := range errs {
		if err != nil {
			return parts, err
		}
	}
	return parts, nil
}

// metadataOf is the metadata of a merged answer: that of the default's part.
func metadataOf(parts []*answer) *reply {
	for _, a := range parts {
		if a.backend.isDefault {
			return &a.reply
		}
	}
	return &reply{}
}

// mergeLists joins encoded lists: in protobuf that is the list of all their items.
func mergeLists(m *merging) (*frame, error) {
	var all mem.BufferSlice
	for _, part := range m.parts {
		all = append(all, part.reply.frame.data...)
	}
	return &frame{data: all}, nil
}
