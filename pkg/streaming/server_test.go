package streaming_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	server "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/ambipod/ambipod/pkg/streaming"
)

func TestMain(m *testing.M) {
	// client-go's client leaves it behind for a while when its server is gone.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"),
		// A second, when the other end of a TLS connection is gone before it.
		goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

const patience = 30 * time.Second

// runtime is what the streams of these tests are for: functions that a test sets.
type runtime struct {
	exec    func(ctx context.Context, cmd []string, in io.Reader, out, errOut io.Writer, tty bool, resize <-chan server.TerminalSize) error
	forward func(ctx context.Context, port int32, stream io.ReadWriteCloser) error
}

func (r *runtime) Exec(ctx context.Context, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan server.TerminalSize) error { //nolint:revive // the interface is not ours
	return r.exec(ctx, cmd, in, out, errOut, tty, resize)
}

func (r *runtime) Attach(ctx context.Context, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan server.TerminalSize) error { //nolint:revive // the interface is not ours
	return r.exec(ctx, nil, in, out, errOut, tty, resize)
}

func (r *runtime) PortForward(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	return r.forward(ctx, port, stream)
}

// serve starts a server and returns it with the function that stops it and waits.
func serve(t *testing.T, r *runtime) (s *streaming.Server, stop func()) {
	t.Helper()
	return serveWith(t, streaming.Options{Runtime: r})
}

func serveWith(t *testing.T, o streaming.Options) (s *streaming.Server, stop func()) {
	t.Helper()
	o.Address, o.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	s, err := streaming.Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("the server does not stop")
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func execURL(t *testing.T, s *streaming.Server, tty bool) *url.URL {
	t.Helper()
	ticket, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cmd"}, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(ticket.GetUrl())
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// clients are the two protocols that kubelet may bring.
var clients = map[string]func(*url.URL) (remotecommand.Executor, error){
	"spdy": func(at *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(&rest.Config{Host: at.Host}, http.MethodPost, at)
	},
	"websocket": func(at *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: at.Host}, http.MethodGet, at.String(), "v4.channel.k8s.io")
	},
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestExecCarriesStreamsAndExitCode(t *testing.T) {
	s, _ := serve(t, &runtime{exec: func(_ context.Context, cmd []string, in io.Reader, out, errOut io.Writer, _ bool, _ <-chan server.TerminalSize) error {
		fmt.Fprintf(errOut, "run %v\n", cmd)
		line, err := bufio.NewReader(in).ReadString('\n')
		fmt.Fprintf(out, "read %q %v\n", line, err)
		return utilexec.CodeExitError{Err: errors.New("failed"), Code: 42}
	}})
	for name, connect := range clients {
		t.Run(name, func(t *testing.T) {
			client, err := connect(execURL(t, s, false))
			if err != nil {
				t.Fatal(err)
			}
			var out, errOut bytes.Buffer
			err = client.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &out, Stderr: &errOut})
			var exit utilexec.ExitError
			if !errors.As(err, &exit) || exit.ExitStatus() != 42 {
				t.Errorf("%v, want exit code 42", err)
			}
			if out.String() != "read \"hello\\n\" <nil>\n" || errOut.String() != "run [cmd]\n" {
				t.Errorf("output %q, errors %q", out.String(), errOut.String())
			}
		})
	}
}

// sizeQueue gives one size of a terminal.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, more := <-q
	if !more {
		return nil
	}
	return &size
}

func TestTerminalSizesArrive(t *testing.T) {
	s, _ := serve(t, &runtime{exec: func(ctx context.Context, _ []string, _ io.Reader, out, _ io.Writer, tty bool, resize <-chan server.TerminalSize) error {
		select {
		case size := <-resize:
			fmt.Fprintf(out, "%v %dx%d", tty, size.Width, size.Height)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	for name, connect := range clients {
		t.Run(name, func(t *testing.T) {
			client, err := connect(execURL(t, s, true))
			if err != nil {
				t.Fatal(err)
			}
			sizes := make(sizeQueue, 1)
			defer close(sizes)
			sizes <- remotecommand.TerminalSize{Width: 80, Height: 25}
			in, keys := io.Pipe()
			defer keys.Close()
			var out bytes.Buffer
			err = client.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
			if err != nil || out.String() != "true 80x25" {
				t.Errorf("%q %v", out.String(), err)
			}
		})
	}
}

func TestTicketIsGoodForOneConnection(t *testing.T) {
	s, _ := serve(t, &runtime{exec: func(_ context.Context, _ []string, _ io.Reader, out, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
		_, err := io.WriteString(out, "once")
		return err
	}})
	at := execURL(t, s, false)
	for round, want := range []string{"once", ""} {
		client, err := clients["spdy"](at)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = client.StreamWithContext(testContext(t), remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Stderr: io.Discard})
		if (err == nil) != (want != "") || out.String() != want {
			t.Errorf("use %d of a ticket: %q %v", round+1, out.String(), err)
		}
	}
	guess, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+s.Address()+"/exec/guessed", nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(guess); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("guessed ticket: %v %v", response, err)
	} else {
		_ = response.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

// through leads a URL by a proxy, as kubelet is one, whose connections can be cut.
func through(t *testing.T, at *url.URL) (cut func()) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := at.Host
	at.Host = listener.Addr().String()
	var running sync.WaitGroup
	connections := make(chan net.Conn, 2)
	running.Go(func() {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", target)
		if err != nil {
			t.Error(err)
			return
		}
		connections <- client
		connections <- server
		running.Go(func() { _, _ = io.Copy(client, server) })
		_, _ = io.Copy(server, client)
		_ = server.Close() // the client has gone
	})
	cut = sync.OnceFunc(func() {
		_ = listener.Close()
		for range cap(connections) {
			select {
			case connection := <-connections:
				_ = connection.Close()
			case <-time.After(patience):
				t.Error("nobody connected")
			}
		}
		running.Wait()
	})
	t.Cleanup(cut)
	return cut
}

// TestEndReachesWhatRuns covers a client that goes away and a server that stops:
// what runs for the connection learns it by its context.
func TestEndReachesWhatRuns(t *testing.T) {
	for name, connect := range clients {
		for _, how := range []string{"connection", "client", "server"} {
			t.Run(name+" "+how, func(t *testing.T) {
				ended := make(chan struct{})
				s, stop := serve(t, &runtime{exec: func(ctx context.Context, _ []string, _ io.Reader, out, _ io.Writer, _ bool, _ <-chan server.TerminalSize) error {
					_, _ = io.WriteString(out, "up")
					<-ctx.Done()
					close(ended)
					return ctx.Err()
				}})
				at := execURL(t, s, false)
				cut := through(t, at)
				client, err := connect(at)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(testContext(t))
				in, keys := io.Pipe()
				defer keys.Close()
				screen, out := io.Pipe()
				done := make(chan error, 1)
				go func() {
					done <- client.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
				}()
				// Then the client has all its streams.
				if _, err := io.ReadFull(screen, make([]byte, 2)); err != nil {
					t.Fatal(err)
				}
				switch how {
				case "connection":
					cut()
				case "client":
					cancel()
				case "server":
					stop()
				}
				select {
				case <-ended:
				case <-time.After(patience):
					t.Error("what runs does not learn of the end")
				}
				cancel()
				<-done
			})
		}
	}
}

func TestPortForwardConnects(t *testing.T) {
	s, _ := serve(t, &runtime{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port == 1 {
			return errors.New("nobody listens")
		}
		line, err := bufio.NewReader(stream).ReadString('\n')
		fmt.Fprintf(stream, "port %d got %q", port, line)
		return err
	}})
	ticket, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s", Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(ticket.GetUrl())
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: at.Host})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at)
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dialer, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("port forwarding ended: %v", err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := (&net.Dialer{}).DialContext(testContext(t), "tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(conn, "hello")
		answer, err := io.ReadAll(conn)
		if err != nil || string(answer) != "port 80 got \"hello\\n\"" {
			t.Errorf("%q %v", answer, err)
		}
		_ = conn.Close()
	}
	close(stop)
	<-done
}

func TestOnlyTheLoopbackIsServed(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:80", "localhost", "[::]:0", "example.org:80"} {
		s, err := streaming.Listen(t.Context(), streaming.Options{Address: address, Runtime: &runtime{}, Logger: slog.New(slog.DiscardHandler)})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want ErrInvalidArgument", address, err)
		}
		if s != nil {
			_ = s.Close()
		}
	}
}
