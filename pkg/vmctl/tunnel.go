package vmctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // deprecated, but what client-go 0.37 returns
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// portForwardProtocol is kubelet's only one over SPDY.
const portForwardProtocol = "portforward.k8s.io"

// maxReason bounds what is read of the reason for a connection that failed, in bytes.
const maxReason = 4 << 10

// Tunnel connects in and out with a TCP port of a VM until the VM closes the
// connection; the end of in is passed on.
func (n *Node) Tunnel(ctx context.Context, vm VM, port int, in io.Reader, out io.Writer) error {
	answer, err := n.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: vm.SandboxID, Port: []int32{int32(port)}}) //nolint:gosec // checked by the command line
	if err == nil {
		err = tunnel(ctx, answer.GetUrl(), port, in, out)
	}
	if err != nil {
		return fmt.Errorf("connect to port %d of VM %s: %w", port, vm.Name(), Native(err))
	}
	return nil
}

func tunnel(ctx context.Context, ticket string, port int, in io.Reader, out io.Writer) error {
	connection, err := dialTicket(ticket)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = connection.Close() })
	defer stop()

	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	reasons, err := connection.CreateStream(headers)
	if err != nil {
		return fmt.Errorf("open streams: %w", err)
	}
	_ = reasons.Close() // nothing is sent on it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := connection.CreateStream(headers)
	if err != nil {
		return fmt.Errorf("open streams: %w", err)
	}
	go func() {
		_, _ = io.Copy(data, in)
		_ = data.Close() // half: what comes back is still read
	}()
	_, copyErr := io.Copy(out, data)
	reason, _ := io.ReadAll(io.LimitReader(reasons, maxReason))
	if len(reason) > 0 {
		return fmt.Errorf("%s: %w", withoutForwarding(strings.TrimSpace(string(reason))), errdefs.ErrUnavailable)
	}
	return errors.Join(copyErr, ctx.Err())
}

// withoutForwarding leaves of a reason what vmruntime said; the package that carries it
// begins with the sandbox's ID and an empty UID (cri-streaming, portforward).
func withoutForwarding(reason string) string {
	if _, why, found := strings.Cut(reason, ", uid : "); found {
		return why
	}
	return reason
}

func dialTicket(ticket string) (httpstream.Connection, error) {
	at, err := url.Parse(ticket)
	if err != nil {
		return nil, fmt.Errorf("vmruntime's URL for streams: %w: %w", errdefs.ErrDataLoss, err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: at.Host})
	if err != nil {
		return nil, fmt.Errorf("prepare streams: %w", err)
	}
	connection, _, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at).Dial(portForwardProtocol)
	if err != nil {
		return nil, fmt.Errorf("connect to vmruntime at %s: %w: %w", at.Host, errdefs.ErrUnavailable, err)
	}
	return connection, nil
}
