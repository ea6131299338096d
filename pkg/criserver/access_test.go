package criserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ambipod/ambipod/pkg/guestexec/wire"
	"github.com/ambipod/ambipod/pkg/network"
)

func TestCappedBuffersShareTheirRoom(t *testing.T) {
	b := newCappedBuffers(10)
	var both sync.WaitGroup
	for _, one := range []*cappedBuffer{&b.stdout, &b.stderr} {
		both.Go(func() {
			for range 100 {
				if n, err := one.Write([]byte("abc")); n != 3 || err != nil {
					t.Errorf("Write: %d %v", n, err)
				}
			}
		})
	}
	both.Wait()
	kept := b.stdout.kept.String() + b.stderr.kept.String()
	if len(kept) != 10 {
		t.Errorf("kept %q, want 10 bytes", kept)
	}
	if !strings.HasPrefix("abcabcabcabc", b.stdout.kept.String()) {
		t.Errorf("standard output begins with %q", b.stdout.kept.String())
	}
}

func TestSizesAreTranslatedAndEnd(t *testing.T) {
	if sizes(t.Context(), nil) != nil {
		t.Error("sizes of no terminal")
	}
	ctx, cancel := context.WithCancel(t.Context())
	from := make(chan remotecommand.TerminalSize, 2)
	from <- remotecommand.TerminalSize{Width: 80, Height: 25}
	from <- remotecommand.TerminalSize{Width: 1, Height: 2}
	to := sizes(ctx, from)
	if got := <-to; got != (wire.Size{Rows: 25, Cols: 80}) {
		t.Errorf("got %+v", got)
	}
	cancel() // nobody takes the second one (CVE-2022-23471)
	for range to {
	}
	closed := make(chan remotecommand.TerminalSize)
	close(closed)
	if _, more := <-sizes(t.Context(), closed); more {
		t.Error("sizes go on after their end")
	}
}

func TestEnvironmentOfCommands(t *testing.T) {
	vm := testVM()
	if got := environmentOf(vm, network.DNS{}); len(got) != 0 || len(forAgent(got)) != 0 {
		t.Errorf("without variables: %q", got)
	}
	vm.config.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("x=y")}, {Key: "B"}}
	env := environmentOf(vm, network.DNS{Options: []string{"ndots:5", "rotate"}})
	if want := []string{"A=x=y", "B=", "RES_OPTIONS=ndots:5 rotate"}; !slices.Equal(env, want) {
		t.Errorf("got %q, want %q", env, want)
	}
	vm.config.Envs[1].Key = "RES_OPTIONS" // the pod's own word counts
	if got, want := environmentOf(vm, network.DNS{Options: []string{"ndots:5"}}), []string{"A=x=y", "RES_OPTIONS="}; !slices.Equal(got, want) {
		t.Errorf("with an own variable: got %q, want %q", got, want)
	}
	env = env[:2]
	if got := forAgent(env); len(got) != 3 || got[0] != agentPath {
		t.Errorf("for the agent: %q", got)
	}
	if got := forAgent([]string{"PATH=/bin"}); len(got) != 1 {
		t.Errorf("for the agent, with a PATH: %q", got)
	}
}

// echo serves one connection at a loopback address: it answers when the client has
// said all.
func echo(t *testing.T, address string) (port int32) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		said, err := io.ReadAll(connection)
		fmt.Fprintf(connection, "you said %q %v", said, err)
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return int32(listener.Addr().(*net.TCPAddr).Port)
}

// stream is a client's end, of which both directions end by themselves.
type stream struct {
	io.Reader
	io.Writer
}

func TestForwardPassesTheClientsEndOn(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			port := echo(t, address)
			connection, err := dialFirst(t.Context(), []string{address}, port)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := forward(t.Context(), connection, stream{strings.NewReader("hello"), &got}); err != nil {
				t.Error(err)
			}
			if got.String() != `you said "hello" <nil>` {
				t.Errorf("got %q", got.String())
			}
		})
	}
}

func TestDialFirstTriesAllAddresses(t *testing.T) {
	port := echo(t, "127.0.0.1")
	connection, err := dialFirst(t.Context(), []string{"127.0.0.9", "127.0.0.1"}, port) // nobody listens at the first
	if err != nil {
		t.Fatal(err)
	}
	_ = connection.Close()
	if _, err := dialFirst(t.Context(), nil, port); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a pod without addresses: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dialFirst(ctx, []string{"127.0.0.1"}, port); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has gone: %v", err)
	}
}

func TestForwardEndsWithItsClient(t *testing.T) {
	ours, guests := net.Pipe()
	client, end := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- forward(ctx, ours, stream{client, io.Discard}) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if _, err := guests.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the guest's connection stays: %v", err)
	}
	_ = end.Close() // as the handler closes the stream
	_ = guests.Close()
}
