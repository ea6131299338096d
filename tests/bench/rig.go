package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambipod/ambipod/pkg/proxy"
	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

// startTime is how long a process of a rig may take until it answers, stopTime
// how long until it obeys SIGTERM.
const (
	startTime = 30 * time.Second
	stopTime  = 30 * time.Second
)

// rig is criproxy before two test backends and relays before one, all as
// processes of their own.
type rig struct {
	dir     string
	direct  *grpc.ClientConn // to the default backend
	proxied *grpc.ClientConn // to criproxy
	relayed *grpc.ClientConn // to a bare relay of calls before the default backend
	copied  *grpc.ClientConn // to a relay of bytes before the default backend
	proxy   process.Process
	stops   []func(context.Context) error // in order of starting
}

// startRig runs criproxy before a default backend and one for VMs with that
// many pods each.
func startRig(ctx context.Context, criproxy string, pods, vms int) (_ *rig, err error) {
	r := &rig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.stop(ctx))
		}
	}()
	if r.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, fmt.Errorf("make folder for the benchmark: %w", err)
	}
	config := proxy.DefaultConfig()
	for _, b := range config.Backends {
		count := vms
		if b.Default {
			count = pods
		}
		if err := r.startSelf(ctx, b.Name, "backend", "-name", b.Name, "-pods", strconv.Itoa(count)); err != nil {
			return nil, err
		}
	}
	byDefault := r.socket(config.Backends[0].Name)
	if r.direct, err = node.Dial(byDefault); err != nil {
		return nil, err
	}
	for name, conn := range map[string]**grpc.ClientConn{"relay": &r.relayed, "bytes": &r.copied} {
		if err := r.startSelf(ctx, name, name, "-backend", byDefault); err != nil {
			return nil, err
		}
		if *conn, err = node.Dial(r.socket(name)); err != nil {
			return nil, err
		}
	}
	if r.proxied, err = node.Dial(r.socket("proxy")); err != nil {
		return nil, err
	}
	return r, r.startProxy(ctx, criproxy, config)
}

func (r *rig) socket(name string) string { return filepath.Join(r.dir, name+".sock") }

// startSelf runs this very program in another part, as a server on the socket of
// that name.
func (r *rig) startSelf(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", append(args, "-listen", r.socket(name))...)
	cmd.Stderr = os.Stderr
	alive, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start test server %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start test server %s: %w", name, err)
	}
	r.stops = append(r.stops, func(context.Context) error { return errors.Join(alive.Close(), cmd.Wait()) })
	return untilAnswers(ctx, r.socket(name))
}

// startProxy runs criproxy with its own defaults on the rig's sockets.
func (r *rig) startProxy(ctx context.Context, criproxy string, config *proxy.Config) error {
	type backendSetting struct {
		Name            string   `json:"name"`
		Socket          string   `json:"socket"`
		Default         bool     `json:"default,omitempty"`
		IDPrefix        string   `json:"idPrefix,omitempty"`
		ImagePrefixes   []string `json:"imagePrefixes,omitempty"`
		RuntimeHandlers []string `json:"runtimeHandlers,omitempty"`
	}
	settings := struct {
		Listen   string           `json:"listen"`
		StateDir string           `json:"stateDir"`
		Backends []backendSetting `json:"backends"`
	}{Listen: r.socket("proxy"), StateDir: r.dir}
	for _, b := range config.Backends {
		settings.Backends = append(settings.Backends, backendSetting{
			b.Name, r.socket(b.Name), b.Default, b.IDPrefix, b.ImagePrefixes, b.RuntimeHandlers,
		})
	}
	text, err := yaml.Marshal(settings)
	if err != nil {
		return fmt.Errorf("configure criproxy: %w", err)
	}
	file := filepath.Join(r.dir, "criproxy.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("configure criproxy: %w", err)
	}
	log, err := os.Create(filepath.Join(r.dir, "criproxy.log"))
	if err != nil {
		return fmt.Errorf("start criproxy: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), criproxy, "-config", file)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start criproxy: %w", err)
	}
	r.stops = append(r.stops, func(ctx context.Context) error {
		return errors.Join(r.proxy.End(ctx, stopTime), cmd.Wait())
	})
	if r.proxy, err = process.Find(cmd.Process.Pid); err != nil {
		return fmt.Errorf("start criproxy: %w", err)
	}
	if err := untilAnswers(ctx, r.socket("proxy")); err != nil {
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("start criproxy: %w: %s", err, said)
	}
	return nil
}

// untilAnswers waits until a CRI server answers.
func untilAnswers(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	conn, err := node.Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("wait for an answer on %s: %w", socket, err)
	}
	return nil
}

// stop ends all processes of the rig and removes its files.
func (r *rig) stop(ctx context.Context) error {
	var errs []error
	for _, conn := range []*grpc.ClientConn{r.direct, r.proxied, r.relayed, r.copied} {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	ctx = context.WithoutCancel(ctx)
	for _, stop := range slices.Backward(r.stops) {
		errs = append(errs, stop(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// memory is criproxy's resident memory now and at its highest, in bytes.
func (r *rig) memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.proxy.PID))
	if err != nil {
		return 0, 0, fmt.Errorf("read memory of criproxy: %w", err)
	}
	if now, err = statusBytes(string(data), "VmRSS:"); err != nil {
		return 0, 0, err
	}
	peak, err = statusBytes(string(data), "VmHWM:")
	return now, peak, err
}

// statusBytes reads a line such as "VmRSS:	  1234 kB".
func statusBytes(status, key string) (int64, error) {
	for line := range strings.Lines(status) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == key {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s of a process: %w", key, err)
			}
			return kilobytes << 10, nil
		}
	}
	return 0, fmt.Errorf("a process's status has no %s: %w", key, errdefs.ErrDataLoss)
}

// cpuTime is the CPU time that criproxy has used so far.
func (r *rig) cpuTime() (time.Duration, error) {
	// The kernel's encoding of "CPU time of that process", see clock_getcpuclockid(3).
	const processClock = 2
	clock := int32(^r.proxy.PID<<3 | processClock) //nolint:gosec // a PID fits
	var used unix.Timespec
	if err := unix.ClockGettime(clock, &used); err != nil {
		return 0, fmt.Errorf("read CPU time of criproxy: %w", err)
	}
	return time.Duration(used.Nano()), nil
}
