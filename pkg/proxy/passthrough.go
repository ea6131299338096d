package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// serveUnknown sends a call of a method that the table does not know to the
// default backend, byte for byte, whatever sort of call it is.
func (p *Proxy) serveUnknown(_ any, in grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(in)
	if !ok {
		return status.Error(codes.Internal, "criproxy: a call without a method name")
	}
	v, release := p.current()
	defer release()
	b := v.fallback
	ctx, cancel := context.WithCancel(outgoing(in.Context()))
	defer cancel()
	out, err := b.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method,
		b.patiently())
	if err != nil {
		return b.unreachable(err)
	}
	// Requests are pumped until the answer is complete; cancelling ctx then ends
	// that goroutine's sends, and the end of the handler its receives.
	go pumpRequests(in, out, cancel)
	return pumpAnswers(in, out)
}

func pumpRequests(in grpc.ServerStream, out grpc.ClientStream, cancel func()) {
	for {
		var f frame
		err := in.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			err = out.CloseSend()
			if err == nil {
				return
			}
		}
		if err == nil {
			err = out.SendMsg(&f)
		}
		if errors.Is(err, io.EOF) { // the backend has ended the call; its status is the answer
			return
		}
		if err != nil {
			cancel()
			return
		}
	}
}

func pumpAnswers(in grpc.ServerStream, out grpc.ClientStream) error {
	header, err := out.Header()
	if err == nil {
		if err := in.SetHeader(withoutHopHeaders(header)); err != nil {
			return err
		}
	}
	for {
		var f frame
		err := out.RecvMsg(&f)
		if err != nil {
			in.SetTrailer(withoutHopHeaders(out.Trailer()))
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := in.SendMsg(&f); err != nil {
			return err
		}
	}
}
