package proxy

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// chunk is about how much of a list goes into one message of a stream.
const chunk = 1 << 20

// serveListStream answers a Stream* method with the items of every backend. The
// list is complete before its first part is sent, so that a backend that breaks
// in the middle leaves no half list at the caller.
func (p *Proxy) serveListStream(r *rule, stream grpc.ServerStream) error {
	request, err := receive(stream)
	if err != nil {
		return err
	}
	defer request.free()
	v, release := p.current()
	defer release()
	started := time.Now()
	parts, err := p.gather(outgoing(stream.Context()), v, r, request, drain(r))
	p.logCall(stream.Context(), r, request, "all", started, err)
	meta := metadataOf(parts)
	if headerErr := stream.SetHeader(withoutHopHeaders(meta.header)); headerErr != nil {
		return headerErr
	}
	stream.SetTrailer(withoutHopHeaders(meta.trailer))
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err := sendItems(stream, part.reply.frame.bytes()); err != nil {
			return err
		}
	}
	return nil
}

// sendItems sends a list in messages of about one chunk and at least one item.
func sendItems(stream grpc.ServerStream, list []byte) error {
	start, rest := list, list
	for len(rest) > 0 {
		f, next, err := wire.Next(rest)
		if err != nil {
			return err
		}
		if used := len(start) - len(rest); used > 0 && used+len(f.Raw) > chunk {
			if err := stream.SendMsg(frameOf(start[:used])); err != nil {
				return err
			}
			start = rest
		}
		rest = next
	}
	if len(start) == 0 {
		return nil
	}
	return stream.SendMsg(frameOf(start))
}

// drain is the fetcher of Stream* methods: all messages of a backend's stream,
// or, if it has no such method, the answer of its list method.
func drain(r *rule) fetcher {
	return func(ctx context.Context, b *backend, request *frame, options ...grpc.CallOption) (reply, error) {
		defer request.free()
		answer, err := b.drain(ctx, r, request, options)
		if status.Code(err) == codes.Unimplemented {
			return exchange(r.listing)(ctx, b, request.share(), options...)
		}
		return answer, err
	}
}

func (b *backend) drain(ctx context.Context, r *rule, request *frame, options []grpc.CallOption) (reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bare, err := b.strip(r, request)
	if err != nil {
		return reply{}, err
	}
	stream, err := b.open(ctx, r.full, bare, options...)
	if err != nil {
		return reply{}, err
	}
	var all reply
	size := 0
	for {
		var part frame
		if err := stream.RecvMsg(&part); err != nil {
			all.header, _ = stream.Header()
			all.trailer = stream.Trailer()
			if errors.Is(err, io.EOF) {
				return all, nil
			}
			return reply{header: all.header, trailer: all.trailer}, err
		}
		if size += part.data.Len(); size > maxMessage {
			return reply{}, status.Errorf(codes.ResourceExhausted, "runtime %s streams more than %d bytes for %s", b.name, maxMessage, r.method)
		}
		whole, err := b.adopt(r, &part)
		if err != nil {
			return reply{}, err
		}
		all.frame.data = append(all.frame.data, whole.data...)
	}
}

// receive takes the one request of a server-streaming call.
func receive(stream grpc.ServerStream) (*frame, error) {
	request := new(frame)
	if err := stream.RecvMsg(request); err != nil {
		return nil, err
	}
	return request, nil
}
