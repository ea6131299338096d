package libvirtd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/process"
)

// stopGrace is how long a process may take to obey SIGTERM before it is killed.
const stopGrace = 10 * time.Second

// maxSocketPath is the room for a path in sockaddr_un, without its final NUL.
const maxSocketPath = 107

// recordName is the file in Dir that Load reads.
const recordName = "instance.json"

// Options says where and how an instance runs.
type Options struct {
	// Dir receives all files of the instance; it is made if absent. Required,
	// absolute, and short enough for a unix socket below it.
	Dir string
	// Wrapper is put before the command line of both daemons, for example
	// {"nsenter", "--net=/run/netns/x"}. It must exec what follows it.
	Wrapper []string
	// Inner is put before libvirtd's own command line, where parts of Dir are in
	// libvirt's places already. It must exec what follows it.
	Inner []string
	// Env is what both daemons have in their environment besides, as "KEY=value".
	Env []string
	// CapabilityCache is a folder to keep libvirt's knowledge about emulators in
	// across instances, which saves seconds at the first connection; by default
	// it is in Dir. It must not be shared by instances that run at once.
	CapabilityCache string
}

// Instance is a running pair of private daemons.
type Instance struct {
	Dir     string   `json:"dir"`
	URI     string   `json:"uri"` // for libvirt's clients on this machine
	Wrapper []string `json:"wrapper,omitempty"`
	Inner   []string `json:"inner,omitempty"`
	Env     []string `json:"env,omitempty"`
	Cache   string   `json:"cache"`

	Libvirtd process.Process `json:"libvirtd"`
	Virtlogd process.Process `json:"virtlogd"`
}

// Start makes the folder's files and starts both daemons, which answer when it
// returns. It fails with errdefs.ErrAlreadyExists if the folder's instance runs,
// and with errdefs.ErrFailedPrecondition if a program or a right is missing.
// Nothing is left running after a failure.
func Start(ctx context.Context, o Options) (*Instance, error) {
	i, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := i.startBoth(ctx); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*stopGrace)
		defer cancel()
		return nil, errors.Join(err, i.Stop(cleanup))
	}
	return i, nil
}

// Load finds the instance that Start recorded in dir, running or not. It fails
// with errdefs.ErrNotFound if there never was one.
func Load(dir string) (*Instance, error) {
	path := filepath.Join(dir, recordName)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no libvirtd was started in %s: %w", dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read record of libvirtd: %w", err)
	}
	i := new(Instance)
	if err := json.Unmarshal(data, i); err != nil {
		return nil, fmt.Errorf("read record of libvirtd in %s: %w: %w", path, errdefs.ErrDataLoss, err)
	}
	return i, nil
}

// Log is the file with libvirtd's own messages.
func (i *Instance) Log() string { return filepath.Join(i.Dir, "log", "libvirtd.log") }

// Stop ends the daemons and everything that they started, guests included, by
// SIGTERM and after ten seconds by SIGKILL. It can be repeated.
func (i *Instance) Stop(ctx context.Context) error {
	// libvirtd first, so that it does not take the end of its guests for crashes
	// and restart nothing.
	err := i.Libvirtd.End(ctx, stopGrace)
	members, listErr := i.members()
	err = errors.Join(err, listErr)
	for _, p := range members {
		err = errors.Join(err, p.Signal(syscall.SIGTERM))
	}
	for _, p := range members {
		err = errors.Join(err, p.End(ctx, stopGrace))
	}
	return errors.Join(err, i.Virtlogd.End(ctx, stopGrace))
}

// StopLibvirtd ends libvirtd alone by SIGTERM, as an upgrade does; guests and
// virtlogd go on.
func (i *Instance) StopLibvirtd(ctx context.Context) error { return i.Libvirtd.End(ctx, stopGrace) }

// KillLibvirtd ends libvirtd alone by SIGKILL and returns when it is gone.
func (i *Instance) KillLibvirtd(ctx context.Context) error { return i.Libvirtd.Kill(ctx) }

// FreezeLibvirtd makes libvirtd hang (SIGSTOP) until ThawLibvirtd.
func (i *Instance) FreezeLibvirtd() error { return i.Libvirtd.Signal(syscall.SIGSTOP) }

// ThawLibvirtd lets a frozen libvirtd go on.
func (i *Instance) ThawLibvirtd() error { return i.Libvirtd.Signal(syscall.SIGCONT) }

// StartLibvirtd starts libvirtd again after it has ended; it answers when
// StartLibvirtd returns. It fails with errdefs.ErrAlreadyExists if it runs.
func (i *Instance) StartLibvirtd(ctx context.Context) error {
	if i.Libvirtd.Alive() {
		return fmt.Errorf("libvirtd of %s runs as process %d: %w", i.Dir, i.Libvirtd.PID, errdefs.ErrAlreadyExists)
	}
	p, err := i.daemon(ctx, "libvirtd")
	if err != nil {
		return err
	}
	i.Libvirtd = p
	return i.record()
}

func (i *Instance) startBoth(ctx context.Context) error {
	p, err := i.daemon(ctx, "virtlogd")
	if err != nil {
		return err
	}
	i.Virtlogd = p
	if err := i.record(); err != nil {
		return err
	}
	return i.StartLibvirtd(ctx)
}

// record writes what Load reads, in one step.
func (i *Instance) record() error {
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("write record of libvirtd: %w", err)
	}
	path := filepath.Join(i.Dir, recordName)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write record of libvirtd: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write record of libvirtd: %w", err)
	}
	return nil
}

func socketURI(dir string) (string, error) {
	socket := filepath.Join(dir, "run", "libvirt-sock")
	if len(socket) > maxSocketPath {
		return "", fmt.Errorf("path of libvirt's socket %s is longer than %d bytes, use a shorter folder: %w",
			socket, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	return "qemu+unix:///system?" + url.Values{"socket": {socket}}.Encode(), nil
}
