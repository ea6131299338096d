package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/accel"
	"github.com/ambipod/ambipod/pkg/criserver"
	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/kubeapi"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
	"github.com/ambipod/ambipod/pkg/network/fdserver"
	"github.com/ambipod/ambipod/pkg/unixsocket"
	"github.com/ambipod/ambipod/pkg/volumes/flexvolume"
)

// drainTimeout bounds the wait for calls under way when the process is told to stop.
// A pull or a StopContainer may take longer; kubelet repeats them.
const drainTimeout = 5 * time.Second

// maxMessage is the size of the messages that kubelet accepts (cri-client).
const maxMessage = 16 << 20

// run serves until the context ends. VMs are left running.
func run(ctx context.Context, s settings, logger *slog.Logger) (err error) {
	if err := s.complete(); err != nil {
		return err
	}
	qemu, err := lookUpUser(s.qemuUser)
	if err != nil {
		return err
	}
	if err := s.layout.Create(); err != nil {
		return err
	}
	var closers closers
	defer func() { err = errors.Join(err, closers.close()) }()

	records, err := metadata.Open(s.layout.Database())
	if err != nil {
		return err
	}
	closers.add(records.Close)
	if err := prepare(s); err != nil {
		return err
	}
	// First of all sockets: it tells a second vmruntime in time.
	listener, err := unixsocket.Listen(ctx, s.listen, os.Getuid(), os.Getgid())
	if err != nil {
		return err
	}
	closers.add(ignoreClosed(listener.Close))

	choice, err := accel.Probe(ctx, accel.Options{Mode: accel.Mode(s.accelerator), User: qemu.accel()})
	if err != nil {
		return err
	}
	logger.InfoContext(ctx, "accelerator", "accel", choice.Accel, "reason", choice.Reason)
	images, err := imagestore.Open(ctx, imagestore.Options{
		Dir: s.layout.Images(), QEMU: &imagestore.Owner{UID: qemu.UID, GID: qemu.GID},
		DefaultProtocol: s.protocol, TranslationDirs: s.translationDirs, FileRoots: s.fileRoots, InsecureRegistries: s.insecureRegistries, Logger: logger,
	})
	if err != nil {
		return err
	}
	closers.add(images.Close)
	networks, err := network.New(network.Options{
		ConfDir: s.cniConfDir, BinDirs: s.cniBinDirs, CacheDir: s.layout.CNICache(), NetNSDir: s.layout.NetNS(), HostRoot: s.cniRoot, Exclusive: s.cniExclusive, Logger: logger,
	})
	if err != nil {
		return err
	}
	closers.add(networks.Close)
	domains := libvirttools.NewClient(libvirttools.Options{URI: s.libvirtURI, Owner: s.layout.State, Logger: logger})
	closers.add(domains.Close)
	descriptors, err := fdserver.Listen(ctx, fdserver.Options{
		Socket: s.layout.FDSocket(), UID: qemu.UID, GID: qemu.GID, Executable: s.wrapper, VHostDevice: "/dev/vhost-net", Logger: logger,
	})
	if err != nil {
		return err
	}

	server, err := criserver.New(ctx, criserver.Options{
		Layout: s.layout, Records: records, Images: images, Network: networks, Domains: domains, Grants: descriptors,
		Shares: shareServer(s.virtiofsd, qemu.User),
		TPMs:   tpmServer(s.swtpm, qemu.User), Machines: domains, Objects: kubeapi.Objects{Kubeconfig: s.kubeconfig},
		Accel: choice.Accel, AccelReason: choice.Reason, HideFeatures: choice.DisableFeatures, CgroupDriver: cgroupDrivers[s.cgroupDriver], Emulator: s.emulator, DomainLogs: s.domainLogs, Wrapper: s.wrapper,
		LibvirtURI: s.libvirtURI, StatusAddress: s.statusAddress,
		HostRoot: s.hostRoot, Folders: folders(s.virtiofsd, logger), RawDevices: s.rawDevices, GuestHelper: s.guestHelper,
		StreamAddress: s.streamAddress, StreamCert: s.streamCert, StreamKey: s.streamKey,
		QEMUUser: qemu.User, Version: version, Logger: logger,
	})
	if err != nil {
		return err
	}
	closers.add(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		return server.Close(ctx)
	})
	if err := server.Recover(ctx); err != nil {
		return err
	}
	logger.InfoContext(ctx, "serving", "socket", s.listen, "version", version)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return descriptors.Serve(ctx) })
	group.Go(func() error { return server.Watch(ctx) })
	group.Go(func() error { return server.ServeStreams(ctx) })
	group.Go(func() error { return server.Maintain(ctx) })
	calls := criserver.NewCallMetrics()
	group.Go(func() error { return serve(ctx, listener, server, calls, logger) })
	group.Go(func() error {
		serveStatus(ctx, s.statusAddress, statusPages(server, images, calls, networks, domains), logger)
		return nil
	})
	group.Go(func() error {
		// Only to be quick when the first VM comes, and to tell in time: nothing
		// depends on it.
		if err := domains.CheckEmulator(ctx, s.wrapper, choice.Accel); err != nil && ctx.Err() == nil {
			logger.WarnContext(ctx, "emulator is not ready", "err", err)
		}
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	logger.Info("stopped; VMs go on running")
	return nil
}

// prepare has libraries put their temporary files where nobody else looks and where
// they do not outlive a kill: the one that writes cloud-init images stages Secrets.
// Kubelet gets the driver of flexvolumes if it is to have one.
func prepare(s settings) error {
	if err := s.layout.EmptyStaging(); err != nil {
		return err
	}
	if s.flexvolumeDir != "" {
		if err := flexvolume.Install(s.flexvolumeDir); err != nil {
			return err
		}
	}
	return os.Setenv("TMPDIR", s.layout.Staging())
}

// serve answers CRI calls until the context ends, then lets those under way finish.
func serve(ctx context.Context, listener net.Listener, server *criserver.Server, calls *criserver.CallMetrics, logger *slog.Logger) error {
	//nolint:contextcheck // each call brings its own context
	options := append(criserver.Interceptors(logger), calls.Interceptors()...)
	options = append(options, grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	rpc := grpc.NewServer(options...)
	runtimeapi.RegisterRuntimeServiceServer(rpc, server)
	runtimeapi.RegisterImageServiceServer(rpc, server)

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-ctx.Done()
		forced := time.AfterFunc(drainTimeout, rpc.Stop)
		defer forced.Stop()
		rpc.GracefulStop()
	}()
	if err := rpc.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	<-drained
	return ctx.Err()
}

var cgroupDrivers = map[string]runtimeapi.CgroupDriver{
	"cgroupfs": runtimeapi.CgroupDriver_CGROUPFS,
	"systemd":  runtimeapi.CgroupDriver_SYSTEMD,
}

// complete fills in what depends on other settings and refuses what cannot work.
func (s *settings) complete() error {
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces and gives files to QEMU's user, which takes root: run it with sudo")
	}
	if _, err := accel.ParseMode(s.accelerator); err != nil {
		return usageError{fmt.Errorf("--accelerator: %w", err)}
	}
	if _, ok := cgroupDrivers[s.cgroupDriver]; !ok {
		return usageError{fmt.Errorf("--cgroup-driver is %q, it must be cgroupfs or systemd", s.cgroupDriver)}
	}
	for _, dir := range []*string{&s.layout.State, &s.layout.Run} {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("make %s absolute: %w", *dir, err)
		}
		*dir = absolute
	}
	if s.listen == "" {
		s.listen = s.layout.Socket()
	}
	if err := s.completeStatus(); err != nil {
		return err
	}
	for name, program := range map[string]*string{"vmwrapper": &s.wrapper, "vmguest": &s.guestHelper} {
		if *program != "" {
			continue
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find %s beside this program: %w", name, err)
		}
		*program = filepath.Join(filepath.Dir(self), name)
	}
	for flag, path := range map[string]string{"--vmwrapper": s.wrapper, "--vmguest": s.guestHelper, "--emulator": s.emulator} {
		if _, err := os.Stat(path); err != nil {
			return usageError{fmt.Errorf("%s: %w", flag, err)}
		}
	}
	return nil
}

// qemuUser is the user that QEMU runs as.
type qemuUser struct{ criserver.User }

func (u qemuUser) accel() *accel.User {
	return &accel.User{UID: uint32(u.UID), GID: uint32(u.GID)} //nolint:gosec // parsed as 32 bits
}

func lookUpUser(name string) (qemuUser, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return qemuUser{}, usageError{fmt.Errorf("--qemu-user: %w; install libvirt-daemon-system, which makes libvirt-qemu, or name another", err)}
	}
	uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
	return qemuUser{criserver.User{UID: int(uid), GID: int(gid)}}, errors.Join(uidErr, gidErr)
}

// closers end what was begun, last first.
type closers []func() error

func (c *closers) add(close func() error) { *c = append(*c, close) }

func (c *closers) close() error {
	var failures error
	for _, close := range slices.Backward(*c) {
		failures = errors.Join(failures, close())
	}
	return failures
}

// ignoreClosed forgives that grpc has closed the listener already.
func ignoreClosed(close func() error) func() error {
	return func() error {
		if err := close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}
