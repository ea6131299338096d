package vmctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

const (
	// runtimeName is what vmruntime calls itself; criproxy has the default's name.
	runtimeName = "ambipod"
	// proxyPrefix is before IDs of VM pods when criproxy tells them.
	proxyPrefix = "vm."
	// runtimesInfo is where criproxy's verbose status has those of its runtimes.
	runtimesInfo = "ambipod.io/runtimes"
	// maxMessage is the size of the messages that kubelet accepts (cri-client).
	maxMessage = 16 << 20
	// answerTime bounds short questions to daemons.
	answerTime = 10 * time.Second
)

// Settings say where the daemons are. What is empty is found out.
type Settings struct {
	Endpoint      string // CRI socket of vmruntime or criproxy, a path or a unix:// URL
	StatusAddress string // of vmruntime, see package statushttp
	LibvirtURI    string
	Layout        layout.Layout // where to look for sockets; must be complete
}

// Node is the connection to a node's daemons. Close it after use.
type Node struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	Version *runtimeapi.VersionResponse // of who answers at Socket
	Socket  string                      // that was connected to

	settings   Settings
	connection *grpc.ClientConn
	logger     *slog.Logger

	mu    sync.Mutex // guards what follows
	facts *Facts
	vms   *libvirttools.Client
}

// Facts are what vmruntime tells about itself.
type Facts struct {
	Libvirt           libvirttools.Info `json:"libvirt"`
	Accelerator       string            `json:"accelerator"`
	AcceleratorReason string            `json:"acceleratorReason"`
	Layout            layout.Layout     `json:"layout"`
	LibvirtURI        string            `json:"libvirtURI"`
	LibvirtLogs       string            `json:"libvirtLogs"`
	StatusAddress     string            `json:"statusAddress"`
}

// Connect finds a CRI server that answers.
func Connect(ctx context.Context, s Settings, logger *slog.Logger) (*Node, error) {
	socket, err := s.socket()
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	n := &Node{
		Runtime: runtimeapi.NewRuntimeServiceClient(connection), Images: runtimeapi.NewImageServiceClient(connection),
		Socket: socket, settings: s, connection: connection, logger: logger,
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if n.Version, err = n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		err = fmt.Errorf("nobody serves the CRI at %s, see whether vmruntime or criproxy should, or name another socket with --runtime-endpoint: %w", socket, Native(err))
		return nil, errors.Join(err, connection.Close())
	}
	return n, nil
}

// Native gives an error of a call the class that its gRPC code stands for, and leaves
// the code's name out of its text.
func Native(err error) error { return errgrpc.ToNative(err) }

// socket is the path that is set, or the first default one that is there.
func (s Settings) socket() (string, error) {
	if s.Endpoint != "" {
		return filepath.Clean(strings.TrimPrefix(s.Endpoint, "unix://")), nil
	}
	candidates := []string{s.Layout.Socket(), s.Layout.ProxySocket()}
	for _, path := range candidates {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("%s may be used by root only, run this with sudo: %w", path, errdefs.ErrPermissionDenied)
		}
	}
	return "", fmt.Errorf("neither %s nor %s is there, start vmruntime or name its socket, or criproxy's, with --runtime-endpoint: %w",
		candidates[0], candidates[1], errdefs.ErrNotFound)
}

// Close ends the connections.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.connection.Close()
	if n.vms != nil {
		err = errors.Join(err, n.vms.Close())
	}
	return err
}

// throughProxy says that criproxy answers, which also has container pods.
func (n *Node) throughProxy() bool { return n.Version.GetRuntimeName() != runtimeName }

// isVM tells VM pods from others by the ID of a sandbox, container or image.
func (n *Node) isVM(id string) bool { return !n.throughProxy() || strings.HasPrefix(id, proxyPrefix) }

// Facts asks vmruntime about itself, once.
func (n *Node) Facts(ctx context.Context) (Facts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.facts != nil {
		return *n.facts, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := n.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return Facts{}, fmt.Errorf("ask %s for its status: %w", n.Socket, Native(err))
	}
	facts, err := readFacts(answer.GetInfo())
	if err != nil {
		return Facts{}, fmt.Errorf("status of %s: %w", n.Socket, err)
	}
	n.facts = &facts
	return facts, nil
}

// readFacts takes them from vmruntime's verbose status, or from criproxy's, in which
// it is one of several.
func readFacts(info map[string]string) (Facts, error) {
	if merged := info[runtimesInfo]; merged != "" {
		var runtimes map[string]struct{ Info map[string]string }
		if err := json.Unmarshal([]byte(merged), &runtimes); err != nil {
			return Facts{}, fmt.Errorf("read the runtimes: %w: %w", errdefs.ErrDataLoss, err)
		}
		info = nil
		for _, runtime := range runtimes {
			if runtime.Info["libvirtURI"] != "" {
				info = runtime.Info
			}
		}
	}
	if info["libvirtURI"] == "" {
		return Facts{}, fmt.Errorf("it tells nothing of vmruntime, which is away, or of another version: %w", errdefs.ErrUnavailable)
	}
	members := map[string]json.RawMessage{}
	for name, value := range info {
		members[name] = json.RawMessage(value)
	}
	var facts Facts
	document, err := json.Marshal(members)
	if err == nil {
		err = json.Unmarshal(document, &facts)
	}
	if err != nil {
		return Facts{}, fmt.Errorf("read what vmruntime tells of itself: %w: %w", errdefs.ErrDataLoss, err)
	}
	return facts, nil
}

// Status returns a reader of vmruntime's status pages.
func (n *Node) Status(ctx context.Context) (*statushttp.Client, error) {
	if n.settings.StatusAddress != "" {
		return statushttp.NewClient(n.settings.StatusAddress), nil
	}
	facts, err := n.Facts(ctx)
	if err != nil {
		return nil, fmt.Errorf("find vmruntime's status pages, which --status-address can name: %w", err)
	}
	if facts.StatusAddress == "" {
		return nil, fmt.Errorf("vmruntime shows no status pages, start it without --status-address=off: %w", errdefs.ErrFailedPrecondition)
	}
	return statushttp.NewClient(facts.StatusAddress), nil
}

// Domains returns the connection to libvirt. It sees the domains of this node alone.
func (n *Node) Domains(ctx context.Context) (*libvirttools.Client, error) {
	facts, err := n.Facts(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vms == nil {
		uri := facts.LibvirtURI
		if n.settings.LibvirtURI != "" {
			uri = n.settings.LibvirtURI
		}
		n.vms = libvirttools.NewClient(libvirttools.Options{URI: uri, Owner: facts.Layout.State, Logger: n.logger})
	}
	return n.vms, nil
}
