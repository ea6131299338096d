// Package node runs a complete private Kubernetes node: containerd, libvirtd,
// vmruntime, criproxy and a standalone kubelet, for the demo, for `make up` and
// for the end-to-end tests.
//
// Nouns. A Node is one set of daemons. All its files are below one folder, its
// root, /var/tmp/ambipod-ID, where ID is made from the checkout and the node's
// name; the checkout itself may lie where QEMU's user cannot look. All its
// daemons are in one network namespace, also named ambipod-ID, which a veth pair
// joins to the machine: pods answer at their IPs from the machine, and several
// nodes fit on it. Pods are below one cgroup, /ambipod-ID. Nothing else of the
// machine is touched: kubelet, which has some paths and kernel settings built
// in, runs in a mount namespace that covers those (kubelet.sh). With
// Config.OwnRoot, runtimes and kubelet have a whole root directory of their own
// (machine.sh), so that several nodes have different folders at one path.
//
// Lifetime. Daemons outlive the program that started them; Load finds them
// again. Stop removes every process, mount, interface, cgroup and file of the
// node, whatever state a crash left it in.
//
// Concurrency. A Node is for one goroutine at a time.
//
// Traps. Paths of unix sockets are limited to 107 bytes, so the root's name is
// short. Everything that the node's processes know each other by is an address
// in the node's namespace: 127.0.0.1 there is not the machine's.
package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// Names under which the daemons are started, stopped and logged.
const (
	Machine    = "machine" // holds the root directory of Config.OwnRoot
	Registry   = "registry"
	ImageSite  = "images"
	Containerd = "containerd"
	Virtlogd   = "virtlogd"
	Libvirtd   = "libvirtd"
	VMRuntime  = "vmruntime"
	CRIProxy   = "criproxy"
	Kubelet    = "kubelet"
)

// parent is where roots are: on a disk, passable for everybody.
const parent = "/var/tmp"

// cleanupTime bounds what is done after the caller's context is gone.
const cleanupTime = 2 * time.Minute

// Config says which node to run.
type Config struct {
	// Checkout is the top folder of the source: programs come from its
	// _build/bin and _tools/bin, images from its _tools/images. Required.
	Checkout string `json:"checkout"`
	// Name tells the nodes of one checkout apart; kubelet uses it as its node
	// name, so mirrored pods are called POD-NAME. Required.
	Name string `json:"name"`
	// PodCIDR is the /24 that pods get addresses from; by default one that does
	// not overlap any route of the machine.
	PodCIDR netip.Prefix `json:"podCIDR"`
	// Accelerator is handed to vmruntime: auto (the default), kvm or tcg.
	Accelerator string `json:"accelerator"`
	// Without names daemons that Start leaves out; StartDaemon can start them
	// later.
	Without []string `json:"without,omitempty"`
	// Programs replaces Ambipod's own programs, by daemon, by other builds.
	Programs map[string]string `json:"programs,omitempty"`
	// Env is added to the environments of daemons, by daemon, as KEY=value.
	Env map[string][]string `json:"env,omitempty"`
	// Args is added to the command lines of daemons, by daemon.
	Args map[string][]string `json:"args,omitempty"`
	// StateBytes, if not 0, makes vmruntime's state folder a file system of that
	// size, so that it can be filled up.
	StateBytes int64 `json:"stateBytes,omitempty"`
	// StateXFS makes that file system XFS in a file, whose files can share blocks,
	// instead of one in memory; it needs 300 MiB at least.
	StateXFS bool `json:"stateXFS,omitempty"`
	// Join, if set, makes kubelet part of a cluster; Node.Join sets it later.
	Join *Join `json:"join,omitempty"`
	// OwnRoot gives containerd, criproxy, kubelet and what these run a root directory
	// of their own, with the node's files at the usual places, as a machine has that
	// runs but this node. It is for nodes on which vmruntime and libvirtd are pods:
	// both must be in Without.
	OwnRoot bool `json:"ownRoot,omitempty"`
	// Kubelet are fields of KubeletConfiguration that differ from the node's usual
	// ones.
	Kubelet map[string]any `json:"kubelet,omitempty"`
	// Progress, if set, is called when a step begins; what it returns is called
	// with the step's error when it ends.
	Progress func(step string) func(error) `json:"-"`
}

// Node is a private node; see the package comment.
type Node struct {
	cfg  Config
	id   string
	root string
	net  network
}

// record is the file by which Load knows a node.
type record struct {
	Config  Config  `json:"config"`
	Network network `json:"network"`
}

// Root is the folder of the node that Start(cfg) makes.
func Root(cfg Config) string {
	sum := sha256.Sum256([]byte(cfg.Checkout + "\x00" + cfg.Name))
	return filepath.Join(parent, "ambipod-"+hex.EncodeToString(sum[:4]))
}

// Start makes a node and returns when all its daemons answer. What an earlier
// node of the same name left behind after a crash is removed first; one that
// still runs is errdefs.ErrAlreadyExists. Nothing is left after a failure.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	n, err := prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := n.startAll(ctx); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, errors.Join(err, n.Stop(cleanup))
	}
	return n, nil
}

// Load finds the node whose root is dir, running or not. It fails with
// errdefs.ErrNotFound if there is none.
func Load(dir string) (*Node, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no node is in %s: %w", dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of node: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read record of node in %s: %w: %w", dir, errdefs.ErrDataLoss, err)
	}
	n := newNode(r.Config)
	n.root, n.net = dir, r.Network
	return n, nil
}

// All finds the nodes of a checkout, running or not, those too that tests have left
// which were killed. The error tells of nodes that Load cannot read.
func All(checkout string) ([]*Node, error) {
	top, err := os.Stat(checkout)
	if err != nil {
		return nil, fmt.Errorf("find nodes of checkout: %w", err)
	}
	records, err := filepath.Glob(filepath.Join(parent, "ambipod-*", recordName))
	errs := []error{err}
	var found []*Node
	for _, record := range records {
		n, err := Load(filepath.Dir(record))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// One folder may have several names.
		if its, err := os.Stat(n.cfg.Checkout); err == nil && os.SameFile(top, its) {
			found = append(found, n)
		}
	}
	return found, errors.Join(errs...)
}

func newNode(cfg Config) *Node {
	root := Root(cfg)
	return &Node{cfg: cfg, root: root, id: root[len(root)-8:]}
}

// prepare checks the configuration, sweeps up after a crash and makes folders
// and network.
func prepare(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Accelerator == "" {
		cfg.Accelerator = "auto"
	}
	n := newNode(cfg)
	if err := n.check(); err != nil {
		return nil, err
	}
	if old, err := Load(n.root); err == nil && old.Running() {
		return nil, fmt.Errorf("node %q is up already in %s; take it down first: %w", cfg.Name, n.root, errdefs.ErrAlreadyExists)
	}
	if err := n.step("remove leftovers of an earlier node", func() error { return n.Stop(ctx) }); err != nil {
		return nil, err
	}
	return n, n.step("make network namespace, cgroup and settings", func() error {
		if err := n.makeAll(ctx); err != nil {
			return errors.Join(err, n.Stop(context.WithoutCancel(ctx)))
		}
		return nil
	})
}

func (n *Node) check() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a private node needs root for network namespaces and cgroups, run as root: %w", errdefs.ErrFailedPrecondition)
	}
	if !filepath.IsAbs(n.cfg.Checkout) || n.cfg.Name == "" {
		return fmt.Errorf("node %q of checkout %q: an absolute checkout and a name are needed: %w",
			n.cfg.Name, n.cfg.Checkout, errdefs.ErrInvalidArgument)
	}
	if n.cfg.OwnRoot && (n.wants(VMRuntime) || n.wants(Libvirtd)) {
		return fmt.Errorf("node %q has a root directory of its own, where vmruntime and libvirtd are pods; leave both out: %w",
			n.cfg.Name, errdefs.ErrInvalidArgument)
	}
	for _, program := range n.programs() {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("%s is missing, run hack/setup.sh: %w", program, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func (n *Node) makeAll(ctx context.Context) error {
	if err := n.makeFolders(); err != nil {
		return err
	}
	network, err := makeNetwork(n.id, n.cfg.PodCIDR)
	if err != nil {
		return err
	}
	n.net = network
	if err := n.save(); err != nil {
		return err
	}
	if err := makeCgroups(n.Cgroup()); err != nil {
		return err
	}
	return errors.Join(n.mountState(ctx), n.writeSettings(), n.copyPrograms(), n.shareKubeletMounts())
}

// save writes what Load reads.
func (n *Node) save() error {
	data, err := json.MarshalIndent(record{n.cfg, n.net}, "", "  ")
	if err != nil {
		return fmt.Errorf("write record of node: %w", err)
	}
	if err := os.WriteFile(filepath.Join(n.root, recordName), data, 0o600); err != nil {
		return fmt.Errorf("write record of node: %w", err)
	}
	return nil
}

// step reports the beginning and the end of do to the configured Progress.
func (n *Node) step(name string, do func() error) error {
	if n.cfg.Progress == nil {
		return do()
	}
	done := n.cfg.Progress(name)
	err := do()
	done(err)
	return err
}
