package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"

	"github.com/ambipod/ambipod/pkg/network/dhcp"
)

// ifName is the first interface's name in every pod.
const ifName = "eth0"

// cleanupTimeout bounds the DEL that follows a failed or cancelled Setup.
const cleanupTimeout = 30 * time.Second

// Options configure a Manager. All folders but ConfDir and BinDirs are Ambipod's
// own; New creates them.
type Options struct {
	ConfDir  string   // CNI network configurations; the first valid file by name is used
	BinDirs  []string // where CNI plugins are looked for, on the node
	CacheDir string   // attachments and CNI results; must survive a reboot
	NetNSDir string   // files of network namespaces; may be empty after a reboot

	// HostRoot is where the node's root directory is mounted, if this process is in a
	// container; plugins are run in it. NetNSDir must then be the same folder in it.
	HostRoot string

	// Exclusive states that no other runtime uses the CNI networks. Only then
	// do plugins get the verb GC, which makes them free all that is not ours.
	Exclusive bool

	Logger *slog.Logger
}

// Manager makes, connects and removes the networks of sandboxes.
type Manager struct {
	confDir     string
	attachments attachmentStore
	netnsDir    string
	exclusive   bool
	cni         libcni.CNI
	finder      pluginFinder
	log         *slog.Logger

	dhcp dhcp.Counts

	locks keyedLocks // one lock for each sandbox; taken before plugins and mu

	// plugins is held for reading while they work on a sandbox; they collect garbage alone
	// (CNI 1.1, GC), for an address that has just been given is no attachment's yet.
	plugins sync.RWMutex

	mu      sync.Mutex                // guards what follows
	servers map[string][]*dhcp.Server // by sandbox
	started map[string]bool           // sandboxes set up by this process, spared by Sweep
}

// New returns a Manager. It needs no CNI configuration yet: see Status. Plugins that
// an earlier Manager of the same folders has left running are waited for, and killed.
func New(o Options) (*Manager, error) {
	for _, dir := range []string{o.CacheDir, o.NetNSDir} {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("network folder %q must be an absolute path: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	store := attachmentStore{dir: filepath.Join(o.CacheDir, "attachments")}
	for _, dir := range []string{o.CacheDir, store.dir, o.NetNSDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create network folder: %w", err)
		}
	}
	if ended, err := endStrays(o.NetNSDir); ended > 0 || err != nil {
		o.Logger.Warn("ended CNI plugins of an earlier process", "count", ended, "err", err)
	}
	exec := &pluginExec{root: o.HostRoot}
	return &Manager{
		confDir:     o.ConfDir,
		attachments: store,
		netnsDir:    o.NetNSDir,
		exclusive:   o.Exclusive,
		cni:         libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, exec),
		finder:      pluginFinder{root: o.HostRoot, dirs: o.BinDirs},
		log:         o.Logger,
		servers:     map[string][]*dhcp.Server{},
		started:     map[string]bool{},
	}, nil
}

// Close stops every DHCP server and waits for it; networks stay as they are.
func (m *Manager) Close() error {
	m.mu.Lock()
	servers := m.servers
	m.servers = map[string][]*dhcp.Server{}
	m.mu.Unlock()
	return closeServers(servers)
}

// idPattern is what CNI allows for a container ID; it also keeps file names safe.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("sandbox ID %q is no valid CNI container ID: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (m *Manager) netnsPath(id string) string { return filepath.Join(m.netnsDir, id) }

func (m *Manager) setStarted(id string, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if yes {
		m.started[id] = true
	} else {
		delete(m.started, id)
	}
}

func (m *Manager) isStarted(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.started[id]
}

// detached returns a context for cleaning up, which must happen although the
// caller has gone away.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}
