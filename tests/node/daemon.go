package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/libvirtd"
	"github.com/ambipod/ambipod/tests/process"
)

// searchPath is where daemons find programs, whatever the caller's PATH says.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// termGrace is how long a daemon may take to obey SIGTERM before it is killed.
const termGrace = 15 * time.Second

// logTail is how much of a daemon's log an error quotes.
const logTail = 1500

// daemon is how one process of the node is run.
type daemon struct {
	name    string
	argv    []string
	ready   func(context.Context) error // nil when it answers
	timeout time.Duration               // from start to ready
}

// order is the order in which daemons are started; they are stopped in reverse.
func order() []string {
	return []string{Machine, Registry, ImageSite, Containerd, Libvirtd, VMRuntime, CRIProxy, Kubelet}
}

// Has says whether the node runs the daemon itself.
func (n *Node) Has(daemon string) bool { return n.wants(daemon) }

func (n *Node) wants(daemon string) bool {
	return !slices.Contains(n.cfg.Without, daemon) && (daemon != Machine || n.cfg.OwnRoot)
}

func (n *Node) startAll(ctx context.Context) error {
	for _, name := range order() {
		if !n.wants(name) {
			continue
		}
		if err := n.step("start "+name, func() error { return n.StartDaemon(ctx, name) }); err != nil {
			return err
		}
		if name == Registry {
			if err := n.step("push container images", func() error { return n.pushImages(ctx) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// StartDaemon starts one daemon and returns when it answers. It fails with
// errdefs.ErrAlreadyExists if the daemon runs.
func (n *Node) StartDaemon(ctx context.Context, name string) error {
	if n.Alive(name) {
		return fmt.Errorf("%s of node %q runs already: %w", name, n.cfg.Name, errdefs.ErrAlreadyExists)
	}
	if name == Libvirtd {
		return n.startLibvirtd(ctx)
	}
	d, err := n.daemon(name)
	if err != nil {
		return err
	}
	return n.run(ctx, d)
}

// run starts a daemon and waits until it answers.
func (n *Node) run(ctx context.Context, d daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout,
		fmt.Errorf("it did not answer within %s: %w", d.timeout, context.DeadlineExceeded))
	defer cancel()
	p, err := n.launch(ctx, d)
	if err != nil {
		return err
	}
	err = Until(ctx, d.name+" answers", func(ctx context.Context) error {
		notReady := d.ready(ctx)
		if notReady != nil && !p.Alive() {
			return stopWaiting{notReady}
		}
		return notReady
	})
	if err != nil {
		return fmt.Errorf("start %s: %w; the end of %s:\n%s", d.name, err, n.LogFile(d.name), n.tail(d.name))
	}
	return nil
}

// SetEnv replaces what the daemon's environment has from Config.Env, from its next
// start on.
func (n *Node) SetEnv(daemon string, env ...string) {
	if n.cfg.Env == nil {
		n.cfg.Env = map[string][]string{}
	}
	n.cfg.Env[daemon] = env
}

// SetArgs replaces what the daemon's command line has from Config.Args, from its next
// start on.
func (n *Node) SetArgs(daemon string, args ...string) {
	if n.cfg.Args == nil {
		n.cfg.Args = map[string][]string{}
	}
	n.cfg.Args[daemon] = args
}

// launch starts the daemon's process in a session of its own.
func (n *Node) launch(ctx context.Context, d daemon) (process.Process, error) {
	log, err := os.OpenFile(n.LogFile(d.name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return process.Process{}, fmt.Errorf("start %s: %w", d.name, err)
	}
	defer func() { _ = log.Close() }()
	// The daemon outlives whoever starts it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), d.argv[0], d.argv[1:]...)
	cmd.Env = append([]string{"PATH=" + n.tool("") + ":" + searchPath, "LANG=C.UTF-8", "HOME=" + n.root}, n.cfg.Env[d.name]...)
	cmd.Dir = n.root
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process.Process{}, fmt.Errorf("start %s: %w", d.name, err)
	}
	p, err := process.Find(cmd.Process.Pid)
	// Reaped here for as long as this program lives, by init afterwards; how it
	// ended is in its log.
	go func() { _ = cmd.Wait() }()
	if err != nil {
		return p, fmt.Errorf("start %s: %w", d.name, err)
	}
	data, err := json.Marshal(p)
	if err != nil {
		return p, fmt.Errorf("record %s: %w", d.name, err)
	}
	if err := os.WriteFile(n.path(dirDaemons, d.name+".json"), data, 0o600); err != nil {
		return p, fmt.Errorf("record %s: %w", d.name, err)
	}
	return p, nil
}

// Process says which process the daemon is; the zero process if it was never
// started.
func (n *Node) Process(name string) process.Process {
	if name == Libvirtd || name == Virtlogd {
		instance, err := libvirtd.Load(n.path(dirLibvirt))
		switch {
		case err != nil:
			return process.Process{}
		case name == Virtlogd:
			return instance.Virtlogd
		default:
			return instance.Libvirtd
		}
	}
	var p process.Process
	data, err := os.ReadFile(n.path(dirDaemons, name+".json"))
	if err != nil || json.Unmarshal(data, &p) != nil {
		return process.Process{}
	}
	return p
}

// Alive says whether the daemon's process exists.
func (n *Node) Alive(name string) bool { return n.Process(name).Alive() }

// Running says whether any daemon of the node runs.
func (n *Node) Running() bool {
	return slices.ContainsFunc(slices.Concat(order(), []string{Virtlogd}, n.added()), n.Alive)
}

// Kill ends the daemon by SIGKILL and returns when it is gone.
func (n *Node) Kill(ctx context.Context, name string) error { return n.Process(name).Kill(ctx) }

// Terminate sends SIGTERM to the daemon and returns when it is gone. A daemon
// that does not obey within 15 s is killed, and that is an error.
func (n *Node) Terminate(ctx context.Context, name string) error {
	p := n.Process(name)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, termGrace)
	defer cancel()
	if err := p.Wait(patience); err != nil {
		err = fmt.Errorf("%s did not end after SIGTERM: %w; the end of its log:\n%s", name, err, n.tail(name))
		return errors.Join(err, p.Kill(ctx))
	}
	return nil
}

// Restart ends the daemon by SIGTERM and starts it again.
func (n *Node) Restart(ctx context.Context, name string) error {
	if err := n.Terminate(ctx, name); err != nil {
		return err
	}
	return n.StartDaemon(ctx, name)
}

// startLibvirtd starts libvirtd, and virtlogd unless it runs.
func (n *Node) startLibvirtd(ctx context.Context) error {
	dir := n.path(dirLibvirt)
	if instance, err := libvirtd.Load(dir); err == nil && instance.Virtlogd.Alive() {
		return instance.StartLibvirtd(ctx)
	}
	cache := n.cacheDir()
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // libvirt's own mode
		return fmt.Errorf("start libvirtd: %w", err)
	}
	_, err := libvirtd.Start(ctx, libvirtd.Options{
		Dir:             dir,
		Wrapper:         n.enter(),
		Inner:           []string{filepath.Join(n.cfg.Checkout, "images", "node", "rootfs", "usr", "libexec", "ambipod", "forget-unborn")},
		Env:             []string{"AMBIPOD_STATE_DIR=" + n.VMStateDir()},
		CapabilityCache: cache,
	})
	if err != nil {
		return fmt.Errorf("start %s: %w; the end of %s:\n%s", Libvirtd, err, n.LogFile(Libvirtd), n.tail(Libvirtd))
	}
	return nil
}

// enter is the command that runs what follows it in the node's network.
func (n *Node) enter() []string { return []string{"/usr/bin/nsenter", "--net=" + namespacePath(n.id)} }

// LibvirtURI is the address of libvirtd for clients on this machine.
func (n *Node) LibvirtURI() string {
	return "qemu+unix:///system?socket=" + n.path(dirLibvirt, "run", "libvirt-sock")
}

func (n *Node) tail(name string) string {
	data, err := os.ReadFile(n.LogFile(name))
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimSpace(data)
	if len(data) > logTail {
		data = data[len(data)-logTail:]
	}
	return strings.ToValidUTF8(string(data), "?")
}
