package proxy

import (
	"context"
	"errors"
	"io"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// reply is what came back from a call.
type reply struct {
	frame   frame
	header  metadata.MD
	trailer metadata.MD
}

// call sends a request, consuming it, and waits for the answer. Metadata goes
// along both ways; an error is the backend's own status, or one that says that
// the backend cannot be reached.
func (b *backend) call(ctx context.Context, method string, request *frame, options ...grpc.CallOption) (reply, error) {
	var r reply
	running := b.meters.begin(method)
	err := b.conn.Invoke(ctx, method, request, &r.frame,
		append(options, grpc.Header(&r.header), grpc.Trailer(&r.trailer))...)
	// A server that has answered, even with an error, has sent a content type.
	if err != nil && len(r.header) == 0 && len(r.trailer) == 0 {
		err = b.unreachable(err)
	}
	running.done(err)
	return r, err
}

// open starts a call that is answered by a stream, consuming the request.
func (b *backend) open(ctx context.Context, method string, request *frame, options ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, options...)
	if err != nil {
		return nil, b.unreachable(err)
	}
	// EOF means that the call has ended already; receiving tells how.
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream, stream.CloseSend()
}

// patiently is how a call waits for its backend to come up. A default backend
// that has not been there yet is waited for as long as the caller waits: kubelet
// may start before it. In every other case an absent backend is an error at once.
func (b *backend) patiently() grpc.CallOption {
	return grpc.WaitForReady(b.isDefault && !b.seen.Load())
}

// unreachable says in one sentence which runtime is missing, where and why.
func (b *backend) unreachable(err error) error {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		return err
	}
	why := b.whyAway()
	if b.isReady() || b.dialErr.Load() == nil {
		why = s.Message()
	}
	return status.Errorf(codes.Unavailable, "runtime %s does not answer at %s (%s): see whether it runs", b.name, b.socket, why)
}

// reason shortens the error of a failed connect to what the system said.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

// outgoing passes the caller's metadata on, without what each hop sets itself.
func outgoing(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	if md = withoutHopHeaders(md); len(md) == 0 {
		return ctx
	}
	return metadata.NewOutgoingContext(ctx, md)
}

func withoutHopHeaders(md metadata.MD) metadata.MD {
	for _, key := range []string{":authority", "content-type", "user-agent", "grpc-accept-encoding", "grpc-encoding", "te"} {
		delete(md, key)
	}
	return md
}

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
