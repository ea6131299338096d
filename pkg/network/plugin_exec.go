package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// pluginOutputLimit is far above any real result.
	pluginOutputLimit = 4 << 20
	// pluginGrace is how long a plugin may go on when nobody waits for it any more. One
	// that is killed amidst its work may leave what no DEL finds: host-local, an address
	// that it has taken and not yet written down whose it is.
	pluginGrace = 2 * time.Second
	// pluginWaitDelay is how long a killed plugin's output pipes are waited for.
	pluginWaitDelay = 2 * time.Second
	busyRetries     = 10
	busyDelay       = 100 * time.Millisecond
)

// pluginExec runs CNI plugins. Unlike libcni's own runner it ends a plugin
// together with its children soon after the context: a hung grandchild that
// holds the output pipe must not hang the pod's deletion.
type pluginExec struct {
	version.PluginDecoder
	root string // where plugins find the node's root directory; "" for our own
}

// FindInPath implements invoke.Exec.
func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return findPlugin(e.root, plugin, paths)
}

// ExecPlugin implements invoke.Exec. A program file that is just being written
// is tried again, for plugins are upgraded in place.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for attempt := 0; ; attempt++ {
		out, err := e.run(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || attempt == busyRetries {
			return out, err
		}
		select {
		case <-time.After(busyDelay):
		case <-ctx.Done():
			return nil, fmt.Errorf("CNI plugin %s: %w", path, context.Cause(ctx))
		}
	}
}

func (e *pluginExec) run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	stdout := &limitedBuffer{limit: pluginOutputLimit}
	stderr := &limitedBuffer{limit: pluginOutputLimit}
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(pluginGrace, kill) })()
	cmd := exec.CommandContext(running, path)
	cmd.Env = environ
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Plugins expect the node's files: their own state, sockets, iptables.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Chroot: e.root}
	if e.root != "" {
		cmd.Dir = "/"
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pluginWaitDelay

	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("CNI plugin %s was stopped: %w", filepath.Base(path), context.Cause(ctx))
	}
	if err != nil {
		return nil, pluginError(filepath.Base(path), err, stdout.buf.Bytes(), stderr.buf.String())
	}
	if stdout.truncated {
		return nil, fmt.Errorf("CNI plugin %s wrote more than %d bytes: %w", filepath.Base(path), pluginOutputLimit, errdefs.ErrDataLoss)
	}
	return stdout.buf.Bytes(), nil
}

// pluginError makes an error of what the plugin said: the JSON error that the
// CNI specification asks for, else its standard error.
func pluginError(name string, err error, stdout []byte, stderr string) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return &said
	}
	if text := strings.Join(strings.Fields(stderr), " "); text != "" {
		return fmt.Errorf("CNI plugin %s: %w: %s", name, err, text)
	}
	return fmt.Errorf("CNI plugin %s: %w, without saying why", name, err)
}

// limitedBuffer keeps the first limit bytes and takes the rest without keeping it.
type limitedBuffer struct {
	buf       bytes.Buffer
	limit     int
	truncated bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.buf.Len())
	b.truncated = b.truncated || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}
