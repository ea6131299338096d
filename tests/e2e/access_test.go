//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"

	"github.com/ambipod/ambipod/tests/node"
)

// TestAccess gets into one VM in all the ways that kubelet has.
func TestAccess(t *testing.T) {
	n := criNode(t)
	useNetwork(t, n, fmt.Sprintf(accessNetwork, filepath.Join(n.Root(), "leases-access")))
	p := dial(t, n).run(t, vmKind)
	t.Run("without an agent", func(t *testing.T) { accessWithoutAgent(t, p) })
	p.waitReady(t)
	eventually(t, "the guest's agent answers", func(ctx context.Context) error {
		_, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}})
		return err
	})
	t.Run("ExecSync", func(t *testing.T) { accessSync(t, p) })
	t.Run("ExecSync in time", func(t *testing.T) { accessTimeout(t, p) })
	t.Run("ExecSync output", func(t *testing.T) { accessCap(t, p) })
	t.Run("tar both ways", func(t *testing.T) { accessTar(t, p) })
	t.Run("terminal", func(t *testing.T) { accessTerminal(t, p) })
	t.Run("client that leaves", func(t *testing.T) { accessLeft(t, p) })
	t.Run("console", func(t *testing.T) { accessConsole(t, p) })
	t.Run("console with a stuck client", func(t *testing.T) { accessStuck(t, p) })
	t.Run("port of IPv6", func(t *testing.T) { accessIPv6(t, p) })
	t.Run("vmruntime restarted", func(t *testing.T) { accessRestarted(t, p) })
	t.Run("agent alone", func(t *testing.T) { accessPlain(t, p) })
	p.removeAtEnd(t)
	removeBridge(t, n, "e2e-access0")
	t.Run("VM that is gone", func(t *testing.T) {
		_, err := p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}})
		refusal{codes.NotFound, []string{strings.TrimPrefix(p.id, "vm.")}}.check(t, err)
	})
	nothingLeft(t, n)
}

// accessWithoutAgent asks while the guest boots: its agent does not run yet.
func accessWithoutAgent(t *testing.T, p *pod) {
	const soon = 20 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	want := refusal{codes.FailedPrecondition, []string{"qemu-guest-agent", "org.qemu.guest_agent.0", p.config.GetMetadata().GetName()}}
	_, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}, Timeout: 15})
	want.check(t, err)
	_, err = p.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.id, Cmd: []string{"true"}, Stdout: true})
	want.check(t, err)
}

// sync runs a script in the guest as a probe does.
func (p *pod) sync(t *testing.T, script string) *runtimeapi.ExecSyncResponse {
	t.Helper()
	answer, err := p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"sh", "-c", script}},
		grpc.MaxCallRecvMsgSize(16<<20)) // kubelet's
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return answer
}

func accessSync(t *testing.T, p *pod) {
	answer := p.sync(t, "echo out; echo err >&2; exit 42")
	if string(answer.GetStdout()) != "out\n" || string(answer.GetStderr()) != "err\n" || answer.GetExitCode() != 42 {
		t.Errorf("%v", answer)
	}
	_, err := p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"no-such-program"}})
	refusal{codes.InvalidArgument, []string{"no-such-program"}}.check(t, err)
	_, err = p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id})
	refusal{codes.InvalidArgument, []string{strings.TrimPrefix(p.id, "vm.")}}.check(t, err)
}

func accessTimeout(t *testing.T, p *pod) {
	_, err := p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"sh", "-c", "sleep 8765; true"}, Timeout: 2})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
	notRunning(t, p, "sleep 8765")
}

// notRunning waits until the guest has no process with that command line.
func notRunning(t *testing.T, p *pod, argv string) {
	t.Helper()
	pattern := "[" + argv[:1] + "]" + argv[1:]
	eventually(t, argv+" is killed in the guest", func(context.Context) error {
		if left := p.sync(t, "ps | grep '"+pattern+"' || true").GetStdout(); len(left) > 0 { //nolint:contextcheck // sync has the test's own
			return fmt.Errorf("running: %s", left)
		}
		return nil
	})
}

func accessCap(t *testing.T, p *pod) {
	answer := p.sync(t, "head -c 18000000 /dev/zero; exit 7")
	if got := len(answer.GetStdout()); got != 16_000_000 || answer.GetExitCode() != 7 {
		t.Errorf("%d bytes and exit code %d, want the first 16 MB and 7", got, answer.GetExitCode())
	}
}

// stream runs a command with streams, as kubelet does, at the URL of its ticket.
func (p *pod) stream(t *testing.T, ctx context.Context, o remotecommand.StreamOptions, cmd ...string) error { //nolint:revive // t comes first
	t.Helper()
	var ticket string
	if len(cmd) > 0 {
		answer, err := p.Exec(ctx, &runtimeapi.ExecRequest{
			ContainerId: p.id, Cmd: cmd, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
		})
		if err != nil {
			return err
		}
		ticket = answer.GetUrl()
	} else {
		answer, err := p.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: p.id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil})
		if err != nil {
			return err
		}
		ticket = answer.GetUrl()
	}
	at, err := url.Parse(ticket)
	if err != nil {
		return err
	}
	at.Host = intoNode(t, ctx, p.n, at.Host)
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: at.Host}, http.MethodPost, at)
	if err != nil {
		return err
	}
	return client.StreamWithContext(ctx, o)
}

// intoNode relays one connection to an address of the node's own loopback, where
// kubelet is, and returns where to connect to. The end of the context cuts it, as the
// end of kubectl's process does; client-go itself leaves its connection open then.
func intoNode(t *testing.T, ctx context.Context, n *node.Node, address string) string { //nolint:revive // t comes first
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		defer context.AfterFunc(ctx, func() { _ = client.Close() })()
		var server net.Conn
		if err := ns.WithNetNSPath(n.Namespace(), func(ns.NetNS) (err error) {
			server, err = net.Dial("tcp", address) //nolint:noctx // the loopback answers at once
			return err
		}); err != nil {
			t.Errorf("connect to %s in the node: %v", address, err)
			return
		}
		defer server.Close()
		go func() {
			_, _ = io.Copy(server, client)
			_ = server.Close() // the client is gone
		}()
		_, _ = io.Copy(client, server)
	}()
	return listener.Addr().String()
}

// accessTar does what `kubectl cp` does.
func accessTar(t *testing.T, p *pod) {
	const size = 3 << 20
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o640, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	if err := p.stream(t, deadline(t), remotecommand.StreamOptions{Stdin: &archive, Stdout: &printed, Stderr: &printed},
		"tar", "-xmf", "-", "-C", "/root"); err != nil {
		t.Fatalf("%v: %s", err, printed.String())
	}
	var back, complaints bytes.Buffer
	if err := p.stream(t, deadline(t), remotecommand.StreamOptions{Stdout: &back, Stderr: &complaints}, "tar", "-cf", "-", "-C", "/root", "file"); err != nil {
		t.Fatalf("%v: %s", err, complaints.String())
	}
	r := tar.NewReader(&back)
	header, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || header.Mode&0o777 != 0o640 || !bytes.Equal(got, content) {
		t.Errorf("%s came back with mode %o and %d bytes, %v", header.Name, header.Mode, len(got), err)
	}
}

// sizes gives a terminal's sizes.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, more := <-s
	if !more {
		return nil
	}
	return &size
}

func accessTerminal(t *testing.T, p *pod) {
	queue := make(sizes, 1)
	defer close(queue)
	queue <- remotecommand.TerminalSize{Width: 61, Height: 13}
	in, keys := io.Pipe()
	defer keys.Close()
	go func() {
		_, _ = io.WriteString(keys, "until [ \"$(stty size)\" = '13 61' ]; do :; done; tty; echo $TERM; exit 5\n")
	}()
	var screen bytes.Buffer
	err := p.stream(t, deadline(t), remotecommand.StreamOptions{Stdin: in, Stdout: &screen, Tty: true, TerminalSizeQueue: queue}, "sh")
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 5 {
		t.Errorf("%v, want exit code 5", err)
	}
	for _, want := range []string{"/dev/pts/", "xterm"} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("the screen lacks %q:\n%s", want, screen.String())
		}
	}
}

// accessLeft leaves a command behind that says nothing.
func accessLeft(t *testing.T, p *pod) {
	ctx, cancel := context.WithCancel(deadline(t))
	screen, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := p.stream(t, ctx, remotecommand.StreamOptions{Stdout: out}, "sh", "-c", "echo up; sleep 8766; true")
		_ = out.CloseWithError(errors.Join(io.EOF, err))
		done <- err
	}()
	if _, err := io.ReadFull(screen, make([]byte, len("up\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	notRunning(t, p, "sleep 8766")
}

// accessRestarted shows that commands work with the next vmruntime as with the last.
func accessRestarted(t *testing.T, p *pod) {
	before := p.sync(t, "cat /proc/sys/kernel/random/boot_id").GetStdout()
	if err := p.n.Restart(deadline(t), node.VMRuntime); err != nil {
		t.Fatal(err)
	}
	eventually(t, "commands work again", func(ctx context.Context) error {
		answer, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"cat", "/proc/sys/kernel/random/boot_id"}})
		if err == nil && !bytes.Equal(answer.GetStdout(), before) {
			t.Errorf("the guest is another: %s, was %s", answer.GetStdout(), before)
		}
		return err
	})
}

// accessNetwork gives pods an address of each family.
const accessNetwork = `{"cniVersion": "1.0.0", "name": "e2e-access", "plugins": [{
	"type": "bridge", "bridge": "e2e-access0", "isGateway": true,
	"ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "172.30.6.0/24"}], [{"subnet": "fd00:e2e:6::/64"}]]}
}]}`

// accessIPv6 forwards a port to a service that listens on the pod's IPv6 address alone.
func accessIPv6(t *testing.T, p *pod) {
	answer, err := p.PodSandboxStatus(deadline(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandboxID})
	must(t, err)
	more := answer.GetStatus().GetNetwork().GetAdditionalIps()
	if len(more) != 1 || net.ParseIP(more[0].GetIp()).To4() != nil {
		t.Fatalf("the pod's second address is %v, want one of IPv6", more)
	}
	if served := p.sync(t, fmt.Sprintf(`setsid httpd -f -p '[%s]:81' -h /var/www </dev/null >/dev/null 2>&1 &
		until wget -q -O /dev/null 'http://[%[1]s]:81/'; do usleep 50000; done`, more[0].GetIp())); served.GetExitCode() != 0 {
		t.Fatalf("the guest does not serve: %v", served)
	}
	crictlForwards(t, p, "81")
}

// accessPlain has the guest refuse the helper: what the agent can do alone still works,
// and what it cannot is told.
func accessPlain(t *testing.T, p *pod) {
	p.sync(t, "for dir in /run /var/tmp /tmp /dev/shm /root; do mkdir -p $dir && mount -t tmpfs -o noexec tmpfs $dir || exit 1; done")
	must(t, p.n.Restart(deadline(t), node.VMRuntime)) // its next command brings the helper anew
	eventually(t, "commands work again", func(ctx context.Context) error {
		_, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}})
		return err
	})
	if helper := p.sync(t, "ps | grep '[v]mguest' || true").GetStdout(); len(helper) > 0 {
		t.Fatalf("the guest runs the helper: %s", helper)
	}
	if answer := p.sync(t, "echo out; echo err >&2; exit 42"); string(answer.GetStdout()) != "out\n" || string(answer.GetStderr()) != "err\n" || answer.GetExitCode() != 42 {
		t.Errorf("%v", answer)
	}
	var out bytes.Buffer
	err := p.stream(t, deadline(t), remotecommand.StreamOptions{Stdout: &out, Stderr: io.Discard}, "sh", "-c", "echo streamed; exit 6")
	if exit := utilexec.ExitError(nil); !errors.As(err, &exit) || exit.ExitStatus() != 6 || out.String() != "streamed\n" {
		t.Errorf("%q %v, want the output and exit code 6", out.String(), err)
	}
	err = p.stream(t, deadline(t), remotecommand.StreamOptions{Stdin: strings.NewReader("in"), Stdout: &out}, "cat")
	if err == nil || !strings.Contains(err.Error(), "streams") {
		t.Errorf("a command with input: %v, want that it has no streams", err)
	}
	_, err = p.ExecSync(deadline(t), &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"sleep", "8767"}, Timeout: 2})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
	notRunning(t, p, "sleep 8767")
}
