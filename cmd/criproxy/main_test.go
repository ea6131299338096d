package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// beCriproxy makes the test binary run as criproxy itself.
const beCriproxy = "AMBIPOD_TEST_BE_CRIPROXY"

func TestMain(m *testing.M) {
	if os.Getenv(beCriproxy) != "" {
		main()
	}
	// glog's own goroutine lives as long as the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// command is criproxy with a command line.
func command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append(os.Environ(), beCriproxy+"=1")
	return c
}

// shortDir is a folder whose paths fit into socket addresses.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "criproxy") //nolint:usetesting // t.TempDir() is too long with the test's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeConfig makes a configuration whose default runtime is at dir/default.sock.
func writeConfig(t *testing.T, dir, more string) string {
	t.Helper()
	path := filepath.Join(dir, "criproxy.yaml")
	text := fmt.Sprintf("listen: %[1]s/p.sock\nstateDir: %[1]s/state\nbackends:\n- {name: containerd, default: true, socket: %[1]s/default.sock}\n%[2]s", dir, more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// outcome runs a command to its end.
func outcome(t *testing.T, c *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	dir := shortDir(t)
	good := writeConfig(t, dir, "")
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("listen: /x\nsocket: /y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	question := filepath.Join(dir, "q.json")
	if err := os.WriteFile(question, []byte(`{"method": "Version"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const nowhere = "/dev/null/x"
	for _, c := range []struct {
		args           []string
		status         int
		stdout, stderr string // parts of them
	}{
		{[]string{"-check-config", "-config", good}, 0, "", ""},
		{[]string{"-check-config", "-config", bad}, 2, "", "criproxy: " + bad + ", line 2, socket: unknown field\n"},
		{[]string{"-config", bad}, 2, "", "line 2, socket: unknown field"},
		{[]string{"-config", dir + "/absent.yaml"}, 2, "", "read configuration: open " + dir + "/absent.yaml: no such file"},
		{[]string{"-config", good, "-listen", "relative"}, 2, "", `command line, listen: "relative" is no absolute path`},
		{[]string{"-config", good, "-explain", question}, 0, "Version goes to runtime containerd", ""},
		{[]string{"-config", good, "-explain", dir + "/absent.json"}, 1, "", "absent.json"},
		{[]string{"-config", good, "-listen", nowhere}, 1, "", "create the socket's folder"},
		{[]string{"-config", good, "-state-dir", nowhere}, 1, "", "create the folder for last known lists"},
		{[]string{"-version"}, 0, "criproxy version " + version + "\n", ""},
		{[]string{"-version", "-config", bad}, 0, "criproxy version ", ""},
		{[]string{"-nonsense"}, 2, "", "flag provided but not defined: -nonsense"},
		{[]string{"nonsense"}, 2, "", `unexpected argument "nonsense"`},
		{[]string{"--help"}, 0, "", "Examples:"},
	} {
		status, stdout, stderr := outcome(t, command(t.Context(), c.args...))
		if status != c.status || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%q: status %d, stdout %q, stderr %q, want %d, %q, %q", c.args, status, stdout, stderr, c.status, c.stdout, c.stderr)
		}
		if c.status == 0 && c.stderr == "" && stderr != "" {
			t.Errorf("%q: says %q", c.args, stderr)
		}
	}
}

// runtimeServer is the default runtime of these tests: it knows its version only.
type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (runtimeServer) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "test"}, nil
}

// stopTime is how long this runtime takes to stop a container: some such call is
// always under way when a proxy is told to end.
const stopTime = 100 * time.Millisecond

func (runtimeServer) StopContainer(ctx context.Context, _ *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	select {
	case <-time.After(stopTime):
		return &runtimeapi.StopContainerResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (runtimeServer) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "one"}}}, nil
}

func startRuntime(t *testing.T, socket string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, runtimeServer{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
}

func dial(t *testing.T, socket string) runtimeapi.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn)
}

// daemon is a running criproxy.
type daemon struct {
	*exec.Cmd
	stderr *syncBuffer
}

type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func start(t *testing.T, c *exec.Cmd) *daemon {
	t.Helper()
	d := &daemon{Cmd: c, stderr: &syncBuffer{}}
	c.Stderr = d.stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // in case that the test ends before the daemon does
		if d.ProcessState == nil {
			_ = d.Process.Kill()
			_ = d.Wait()
		}
	})
	return d
}

// terminate ends the daemon by SIGTERM and checks that it goes in good order.
func (d *daemon) terminate(t *testing.T) {
	t.Helper()
	if err := d.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Errorf("criproxy ended with %v:\n%s", err, d.stderr)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 seconds: %s", what)
		}
		<-tick.C
	}
}

func callVersion(t *testing.T, c runtimeapi.RuntimeServiceClient) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	return err
}

// The log has a line for each call that changes something or fails from -v=4 on, for
// every call from -v=5 on, and the requests from -v=6 on.
func TestVerbosity(t *testing.T) {
	dir := shortDir(t)
	config := writeConfig(t, dir, "")
	startRuntime(t, dir+"/default.sock")
	for v, want := range map[int]struct{ deeds, looks, requests bool }{
		3: {}, 4: {deeds: true}, 5: {deeds: true, looks: true}, 6: {deeds: true, looks: true, requests: true},
	} {
		d := start(t, command(t.Context(), "-config", config, fmt.Sprintf("-v=%d", v)))
		eventually(t, "the socket is there", func() bool {
			_, err := os.Stat(dir + "/p.sock")
			return err == nil
		})
		client := dial(t, dir+"/p.sock")
		if err := callVersion(t, client); err != nil {
			t.Fatal(err)
		}
		if _, err := client.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "some-id"}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "absent"}); err == nil {
			t.Fatal("the runtime knows an absent container")
		}
		d.terminate(t)
		text := d.stderr.String()
		for part, there := range map[string]bool{
			"method=StopContainer": want.deeds, "method=ContainerStatus": want.deeds, "code=Unimplemented": want.deeds,
			"method=Version": want.looks, "some-id": want.requests,
		} {
			if strings.Contains(text, part) != there {
				t.Errorf("-v=%d shows %q: %v, want %v:\n%s", v, part, !there, there, text)
			}
		}
	}
}

// A second proxy on the same socket says so and leaves the first alone; a socket
// of a killed one is taken over; SIGTERM removes it.
func TestSocketOfAnother(t *testing.T) {
	dir := shortDir(t)
	config := writeConfig(t, dir, "")
	startRuntime(t, dir+"/default.sock")
	first := start(t, command(t.Context(), "-config", config))
	client := dial(t, dir+"/p.sock")
	if err := callVersion(t, client); err != nil {
		t.Fatal(err)
	}
	status, _, stderr := outcome(t, command(t.Context(), "-config", config))
	if status != 1 || !strings.Contains(stderr, "criproxy: socket "+dir+"/p.sock is served by another process") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("status %d, %q, want 1 and one sentence about the socket", status, stderr)
	}
	if err := callVersion(t, client); err != nil {
		t.Errorf("the first proxy was disturbed: %v", err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	second := start(t, command(t.Context(), "-config", config))
	if err := callVersion(t, client); err != nil {
		t.Errorf("the stale socket was not taken over: %v\n%s", err, second.stderr)
	}
	second.terminate(t)
	if _, err := os.Stat(dir + "/p.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// SIGHUP reads the file again; a wrong one changes nothing and is reported.
func TestHangup(t *testing.T) {
	dir := shortDir(t)
	config := writeConfig(t, dir, "")
	startRuntime(t, dir+"/default.sock")
	d := start(t, command(t.Context(), "-config", config))
	client := dial(t, dir+"/p.sock")
	if err := callVersion(t, client); err != nil {
		t.Fatal(err)
	}
	hangup := func(more, says string) {
		writeConfig(t, dir, more)
		if err := d.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says "+says, func() bool { return strings.Contains(d.stderr.String(), says) })
		if err := callVersion(t, client); err != nil {
			t.Errorf("after %q: %v", more, err)
		}
	}
	hangup("- {name: vm, socket: "+dir+"/vm.sock, idPrefix: vm.}\n", "configuration read again runtimes=2")
	hangup("- {name: vm, socket: "+dir+"/vm.sock, idPrefix: vm-}\n", "the configuration stays as it was")
	hangup("metricsAddress: unix:"+dir+"/m.sock\n", "take effect at the next start only")
	d.terminate(t)
}

// One proxy replaces another behind systemd's socket while callers go on: none
// of their calls fails.
func TestReplacementBehindPassedSocket(t *testing.T) {
	dir := shortDir(t)
	config := writeConfig(t, dir, "")
	startRuntime(t, dir+"/default.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/systemd.sock"})
	if err != nil {
		t.Fatal(err)
	}
	passed, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close(); passed.Close() })
	activate := func() *daemon {
		// As systemd does: the socket is descriptor 3 of a process whose own ID is in LISTEN_PID.
		c := exec.CommandContext(t.Context(), "/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -config "$1"`, os.Args[0], config)
		c.Env = append(os.Environ(), beCriproxy+"=1")
		c.ExtraFiles = []*os.File{passed}
		return start(t, c)
	}
	running := activate()
	stop := make(chan struct{})
	var served atomic.Int64
	var callers sync.WaitGroup
	for _, call := range []func(context.Context, runtimeapi.RuntimeServiceClient) error{
		func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
			_, err := c.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		},
		func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
			list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			if n := len(list.GetContainers()); err == nil && n != 1 {
				return fmt.Errorf("the list has %d containers, want 1", n)
			}
			return err
		},
		func(ctx context.Context, c runtimeapi.RuntimeServiceClient) error {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "one"})
			return err
		},
	} {
		client := dial(t, dir+"/systemd.sock")
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// As kubelet calls: no waiting for a connection that has failed.
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				err := call(ctx, client)
				cancel()
				if err != nil {
					t.Errorf("call %d failed: %v", served.Load(), err)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 4 {
		before := served.Load()
		eventually(t, "the proxy serves under load", func() bool { return served.Load() > before+200 })
		running.terminate(t)
		running = activate()
	}
	close(stop)
	callers.Wait()
	running.terminate(t)
	if _, err := os.Stat(dir + "/systemd.sock"); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

// Metrics are served where the configuration says.
func TestMetricsSocket(t *testing.T) {
	dir := shortDir(t)
	config := writeConfig(t, dir, "metricsAddress: unix:"+dir+"/m.sock\n")
	startRuntime(t, dir+"/default.sock")
	d := start(t, command(t.Context(), "-config", config))
	if err := callVersion(t, dial(t, dir+"/p.sock")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "metrics are served", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", dir+"/m.sock")
		if err != nil {
			return false
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /metrics HTTP/1.0\r\n\r\n")
		answer := make([]byte, 1<<16)
		n := 0
		for {
			more, err := conn.Read(answer[n:])
			n += more
			if err != nil || n == len(answer) {
				break
			}
		}
		return strings.Contains(string(answer[:n]), `criproxy_calls_total{code="OK",method="Version",runtime="containerd"} 1`)
	})
	d.terminate(t)
}
