package proxy

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// startRaw serves every method of every service with a function of bytes.
func startRaw(t testing.TB, socket string, serve func(stream grpc.ServerStream) error) {
	t.Helper()
	listener := listenUnix(t, socket)
	server := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return serve(stream) }))
	go func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("raw runtime: %v", err)
		}
	}()
	t.Cleanup(server.Stop)
}

// startEcho serves a runtime that sends back every message. Calls of several
// messages end with Aborted, so that a test knows its status from others. It
// tells the names of the methods that no runtime has.
func startEcho(t testing.TB, socket string) <-chan string {
	t.Helper()
	methods := make(chan string, 100)
	startRaw(t, socket, func(stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if methodLabel(method) == otherMethods {
			methods <- method
		}
		for n := 0; ; n++ {
			var f frame
			switch err := stream.RecvMsg(&f); {
			case errors.Is(err, io.EOF) && n > 1:
				stream.SetTrailer(metadata.Pairs("echoed", "all"))
				return status.Error(codes.Aborted, "enough")
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			}
			if err := stream.SendMsg(&f); err != nil {
				return err
			}
		}
	})
	return methods
}
