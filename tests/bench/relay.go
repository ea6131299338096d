package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

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

// serveBytes connects each caller with a connection of its own to the backend and
// copies what comes, both ways, until stdin ends. It knows nothing of gRPC: what it
// costs is what any process between two others costs.
func serveBytes(ctx context.Context, backend, socket string, stdin io.Reader) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("serve byte relay: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var callers sync.WaitGroup
	callers.Go(func() {
		for {
			caller, err := listener.Accept()
			if err != nil {
				return // closed below
			}
			callers.Go(func() { joinConns(ctx, caller, backend) })
		}
	})
	_, err = io.Copy(io.Discard, stdin)
	err = errors.Join(err, listener.Close())
	cancel()
	callers.Wait()
	return err
}

// joinConns passes a caller's bytes to the backend and back until one of them hangs
// up or ctx ends.
func joinConns(ctx context.Context, caller net.Conn, backend string) {
	defer func() { _ = caller.Close() }()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", backend)
	if err != nil {
		return // the caller sees that nobody answers
	}
	hangUp := func() { _, _ = caller.Close(), conn.Close() }
	defer context.AfterFunc(ctx, hangUp)()
	var requests sync.WaitGroup
	requests.Go(func() {
		_, _ = io.Copy(conn, caller)
		hangUp()
	})
	_, _ = io.Copy(caller, conn)
	hangUp()
	requests.Wait()
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
