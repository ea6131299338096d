package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// serveRelay passes every unary call on to a backend as bytes, until stdin ends.
// It decides nothing, counts nothing and logs nothing: the least that a hop made
// of grpc-go can cost, and so the floor for criproxy.
func serveRelay(ctx context.Context, backend, socket string, stdin io.Reader) (err error) {
	conn, err := grpc.NewClient("unix://"+backend, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		return fmt.Errorf("relay to %s: %w", backend, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("serve relay: %w", err)
	}
	//nolint:contextcheck // every call has a context of its own
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(
		func(_ any, call grpc.ServerStream) error {
			// There always is a name in a call that a server got.
			method, _ := grpc.MethodFromServerStream(call)
			var request, answer mem.BufferSlice
			if err := call.RecvMsg(&request); err != nil {
				return err
			}
			if err := conn.Invoke(call.Context(), method, &request, &answer); err != nil {
				return err
			}
			return call.SendMsg(&answer)
		}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	_, err = io.Copy(io.Discard, stdin)
	server.Stop()
	return errors.Join(err, <-served)
}

// rawCodec hands encoded messages through gRPC as they are.
type rawCodec struct{}

// Name is what ordinary protobuf peers call their encoding.
func (rawCodec) Name() string { return "proto" }

// Marshal gives the message's buffers to gRPC.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	message, ok := v.(*mem.BufferSlice)
	if !ok {
		return nil, fmt.Errorf("relay a %T: %w", v, errdefs.ErrInvalidArgument)
	}
	return *message, nil
}

// Unmarshal keeps the message's buffers.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	message, ok := v.(*mem.BufferSlice)
	if !ok {
		return fmt.Errorf("relay into a %T: %w", v, errdefs.ErrInvalidArgument)
	}
	data.Ref()
	*message = data
	return nil
}
