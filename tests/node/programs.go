package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long daemons may take until they answer. Each is several times what was
// seen on a busy machine.
const (
	startSoon = 30 * time.Second
	startSlow = 2 * time.Minute
)

// daemon says how the daemon of that name is run.
func (n *Node) daemon(name string) (daemon, error) {
	d := daemon{name: name, argv: n.enter(), timeout: startSoon}
	switch name {
	case Machine:
		d.argv = append(d.argv, n.machineCommand()...)
		d.ready = n.machineIsMade
	case Registry:
		d.argv = append(d.argv, n.tool("crane"), "registry", "serve",
			"--address", ":"+registryPort, "--disk", n.path(dirRegistry))
		d.ready = func(ctx context.Context) error {
			return answers(ctx, "http://"+n.net.nodeIP().String()+":"+registryPort+"/v2/")
		}
	case ImageSite:
		d.argv = append(d.argv, "/usr/bin/busybox", "httpd", "-f", "-p", "80", "-h", n.path(dirSite))
		d.ready = func(ctx context.Context) error { return n.siteAnswers(ctx) }
	case Containerd:
		d.argv = append(n.enterRoot(), n.tool("containerd"), "--config", n.path(dirEtc, "containerd.toml"))
		d.ready = func(ctx context.Context) error { return RuntimeReady(ctx, n.ContainerdSocket()) }
	case VMRuntime:
		d.argv = append(d.argv, n.vmruntimeCommand()...)
		d.timeout = startSlow
		d.ready = func(ctx context.Context) error { return RuntimeReady(ctx, n.VMRuntimeSocket()) }
	case CRIProxy:
		d.argv = append(n.enterRoot(), n.built("criproxy"), "--config", n.path(dirEtc, "criproxy.yaml"), "--logtostderr", "-v=2")
		d.ready = func(ctx context.Context) error { return RuntimeReady(ctx, n.CRIProxySocket()) }
	case Kubelet:
		d.argv = append(n.enterRoot(), n.kubeletCommand()...)
		d.timeout = startSlow
		d.ready = n.kubeletAnswers
	default:
		return daemon{}, fmt.Errorf("the node has no daemon %q: %w", name, errdefs.ErrNotFound)
	}
	d.argv = append(d.argv, n.cfg.Args[name]...)
	return d, nil
}

// Command is how the daemon is run.
func (n *Node) Command(name string) ([]string, error) {
	d, err := n.daemon(name)
	return d.argv, err
}

func (n *Node) vmruntimeCommand() []string {
	return []string{
		n.built("vmruntime"),
		"--state-dir", n.path(dirVM),
		"--run-dir", n.VMRunDir(),
		"--listen", n.VMRuntimeSocket(),
		"--libvirt-uri", n.LibvirtURI(),
		"--libvirt-log-dir", n.path(dirLibvirt, "log", "qemu"),
		"--emulator", qemuPath,
		"--vmwrapper", n.path(dirPrograms, "vmwrapper"),
		"--vmguest", n.built("vmguest"),
		"--cni-conf-dir", n.path(dirEtc, "cni"),
		"--cni-bin-dir", n.PluginDir() + "," + pluginsDir,
		"--flexvolume-dir", n.volumePluginDir(),
		"--raw-devices", "loop*",
		"--image-translations-dir", n.path(dirEtc, dirTranslations),
		"--accelerator", n.cfg.Accelerator,
		"--logtostderr", "-v=2",
	}
}

// coverCommand runs what follows it in a mount namespace for kubelet.
func (n *Node) coverCommand() []string {
	return []string{
		"/usr/bin/unshare", "--mount", "--propagation", "unchanged",
		"/bin/sh", n.path(dirEtc, "kubelet.sh"), n.path(dirCover),
	}
}

func (n *Node) kubeletCommand() []string {
	command := append(n.coverCommand(),
		n.tool("kubelet"),
		"--config", n.path(dirEtc, "kubelet.yaml"),
		"--root-dir", n.path(dirKubelet),
		"--cert-dir", n.path(dirPKI),
		"--hostname-override", n.cfg.Name,
		"--node-ip", n.net.nodeIP().String(),
		"--v", "2",
	)
	if n.cfg.Join != nil {
		command = append(command, n.cfg.Join.arguments()...)
	}
	return command
}

// siteAnswers asks for a file that is there, if any is.
func (n *Node) siteAnswers(ctx context.Context) error {
	err := answers(ctx, n.siteURL()+"/"+guestFile)
	if missing := (statusError{}); errors.As(err, &missing) && missing.code == http.StatusNotFound {
		return nil
	}
	return err
}

// siteURL is the image server's address from the machine; the node's daemons
// reach it at http://127.0.0.1 too.
func (n *Node) siteURL() string { return "http://" + n.net.nodeIP().String() }

// statusError is an HTTP answer other than 200.
type statusError struct {
	url  string
	code int
}

func (s statusError) Error() string { return fmt.Sprintf("GET %s answered %d", s.url, s.code) }

// Fetch returns a page of a pod or of the node.
func Fetch(ctx context.Context, url string) ([]byte, error) { return fetch(ctx, url, maxPage) }

func answers(ctx context.Context, url string) error {
	_, err := fetch(ctx, url, 1)
	return err
}

// fetch returns up to limit bytes of a page on this machine. kubelet's
// certificate is self-signed, so certificates are not looked at.
func fetch(ctx context.Context, url string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, startSoon)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the node's own address
	}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, statusError{url, response.StatusCode}
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	return data, nil
}

// Dial connects to a CRI server; the caller closes the connection.
func Dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return conn, nil
}

// RuntimeReady asks a CRI server whether it and its network are ready; the error
// says what is not.
func RuntimeReady(ctx context.Context, socket string) error {
	conn, err := Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, startSoon)
	defer cancel()
	answer, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask %s for its status: %w", socket, err)
	}
	for _, c := range answer.GetStatus().GetConditions() {
		if !c.GetStatus() && (c.GetType() == runtimeapi.RuntimeReady || c.GetType() == runtimeapi.NetworkReady) {
			return fmt.Errorf("%s is not %s: %s: %s: %w", socket, c.GetType(), c.GetReason(), c.GetMessage(), errdefs.ErrUnavailable)
		}
	}
	return nil
}
