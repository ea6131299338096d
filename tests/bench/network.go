package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"libvirt.org/go/libvirtxml" //nolint:depguard // describes a domain to virsh, which Ambipod has no part in

	"github.com/ambipod/ambipod/pkg/cgroup"
	"github.com/ambipod/ambipod/pkg/cloudinit"
	"github.com/ambipod/ambipod/pkg/network/netns"
	"github.com/ambipod/ambipod/tests/node"
)

// guestServers has the tiny guest send without end, swallow what it is sent, and
// send back what it is sent.
const guestServers = `#cloud-config
runcmd:
- [sh, -c, "nc -ll -p 9001 -e cat /dev/zero >/dev/null 2>&1 & nc -ll -p 9002 -e dd of=/dev/null bs=64k >/dev/null 2>&1 & nc -ll -p 9003 -e cat >/dev/null 2>&1 &"]
`

// Ports of the guest's servers.
const (
	portSource = 9001
	portSink   = 9002
	portEcho   = 9003
)

// Work of one sample.
const (
	streamed   = 16 << 20 // bytes
	roundTrips = 100
	networkRun = 100 // samples of each side
	// guestBoot is how long a guest may take until its servers answer.
	guestBoot = 6 * time.Minute
	// sampleTime is how long a sample may take.
	sampleTime = time.Minute
)

// measureNetwork compares a VM pod's network with that of a VM that libvirt starts
// with a tap on the same bridge. Both run; while one is measured the other is idle.
func measureNetwork(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "network", Base: "tap on the bridge", Ours: "VM pod",
		Title: fmt.Sprintf("Network of a guest, from the node, medians of %d alternating samples", networkRun),
	}
	v, err := startVMBench(ctx, e, "bench-net")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.stop(ctx)) }()
	vm, err := v.create(ctx, vmSpec{annotations: map[string]string{"vm.ambipod.io/user-data": guestServers}})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.remove(ctx, vm)) }()
	if err := v.start(ctx, vm); err != nil {
		return s, err
	}
	pod, err := v.address(ctx, vm)
	if err != nil {
		return s, err
	}
	twin, err := v.startTwin(ctx, pod)
	if err != nil {
		return s, err
	}
	const least floor = 0.95
	for _, m := range []struct {
		what   string
		sample func(context.Context, netip.Addr) error
		work   float64
		unit   string
	}{
		{"stream from the guest", v.receive, streamed / 1e6, "MB/s"},
		{"stream to the guest", v.send, streamed / 1e6, "MB/s"},
		{"round trips of one byte", v.echo, roundTrips, "/s"},
	} {
		for _, address := range []netip.Addr{pod, twin} { // both serve?
			boot, cancel := context.WithTimeout(ctx, guestBoot)
			err := node.Until(boot, fmt.Sprintf("guest %s serves", address), func(ctx context.Context) error { return m.sample(ctx, address) })
			cancel()
			if err != nil {
				return s, err
			}
		}
		p, err := alternate(1, networkRun,
			func() error { return m.sample(ctx, twin) },
			func() error { return m.sample(ctx, pod) })
		if err != nil {
			return s, err
		}
		s.Rows = append(s.Rows, rateRow(m.what, p, m.work, m.unit, least))
		_, _ = fmt.Fprintf(e.out, "    %s done\n", m.what)
	}
	return s, nil
}

// address is a pod's IPv4 address.
func (v vmBench) address(ctx context.Context, vm vmPod) (netip.Addr, error) {
	answer, err := v.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: vm.sandbox})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ask for the pod's address: %w", err)
	}
	address, err := netip.ParseAddr(answer.GetStatus().GetNetwork().GetIp())
	if err != nil {
		return address, fmt.Errorf("read the pod's address: %w", err)
	}
	return address, nil
}

// startTwin has libvirt start the same machine with disks of its own and the same
// programs in the guest. It returns the guest's address, the last of the network,
// which no pod of this node has.
func (v vmBench) startTwin(ctx context.Context, pod netip.Addr) (netip.Addr, error) {
	twin, err := v.describe(ctx)
	if err != nil {
		return pod, err
	}
	const (
		last    = 254
		gateway = 1
	)
	b := pod.As4()
	b[3] = gateway
	router := netip.AddrFrom4(b)
	b[3] = last
	address := netip.AddrFrom4(b)
	if err := v.giveDisks(ctx, twin, address, router); err != nil {
		return address, err
	}
	if err := v.createDomain(ctx, twin); err != nil {
		return address, err
	}
	return address, v.confine(twin)
}

// confine puts a twin's QEMU beside the pods' control groups: where processors are
// scarce, what is in a group gets less than what is in none.
func (v vmBench) confine(twin *libvirtxml.Domain) error {
	found, err := v.node.ProcessesNaming("guest=" + twin.Name)
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d processes are the twin's QEMU: %w", len(found), errdefs.ErrNotFound)
	}
	group := cgroup.Path(v.node.Cgroup(), twin.Name)
	if err := cgroup.Create(group, cgroup.Limits{}); err != nil {
		return err
	}
	return cgroup.Add(group, found[0].PID)
}

// giveDisks replaces a twin's disks, console and channels, which its pod is using.
func (v vmBench) giveDisks(ctx context.Context, twin *libvirtxml.Domain, address, router netip.Addr) error {
	dir := filepath.Join(v.node.Root(), "twin")
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // QEMU's user passes
		return fmt.Errorf("make folder for the twin: %w", err)
	}
	mac, err := net.ParseMAC(twinMAC)
	if err != nil {
		return fmt.Errorf("read the twin's MAC address: %w", err)
	}
	documents, err := cloudinit.NoCloud(cloudinit.Config{
		InstanceID: "twin", Hostname: "twin", UserData: cloudinit.UserData{Raw: []byte(guestServers)},
		Network: &cloudinit.NetworkConfig{Interfaces: []cloudinit.Interface{{
			MAC: mac, Name: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)},
			Routes: []cloudinit.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: router}},
		}}},
	})
	if err != nil {
		return fmt.Errorf("configure the twin: %w", err)
	}
	iso, root := filepath.Join(dir, "config.iso"), filepath.Join(dir, "root.qcow2")
	if err := cloudinit.WriteISO(iso, cloudinit.LabelNoCloud, documents); err != nil {
		return fmt.Errorf("configure the twin: %w", err)
	}
	for i := range twin.Devices.Disks {
		disk := &twin.Devices.Disks[i]
		if disk.Device == "cdrom" {
			disk.Source.File.File = iso
			continue
		}
		out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.BackingStore.Source.File.File, root).CombinedOutput()
		if err != nil {
			return fmt.Errorf("make the twin's disk: %w: %s", err, out)
		}
		disk.Source.File.File = root
	}
	twin.Devices.Channels = nil
	twin.Devices.Serials = []libvirtxml.DomainSerial{{
		Source: &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: filepath.Join(dir, "console.log")}},
	}}
	twin.Devices.Consoles = nil
	return nil
}

// dial connects to a guest from the node's network.
func (v vmBench) dial(ctx context.Context, to netip.Addr, port uint16) (conn *net.TCPConn, err error) {
	err = netns.Do(v.node.Namespace(), func() error {
		c, err := (&net.Dialer{Timeout: sampleTime}).DialContext(ctx, "tcp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		conn = c.(*net.TCPConn) //nolint:errcheck,forcetypeassert // of network tcp
		return conn.SetDeadline(time.Now().Add(sampleTime))
	})
	return conn, err
}

// receive takes a stream from a guest.
func (v vmBench) receive(ctx context.Context, from netip.Addr) error {
	conn, err := v.dial(ctx, from, portSource)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, conn, streamed)
	return errors.Join(err, conn.Close())
}

// send sends a stream to a guest, which closes the connection when it has all.
func (v vmBench) send(ctx context.Context, to netip.Addr) error {
	conn, err := v.dial(ctx, to, portSink)
	if err != nil {
		return err
	}
	data := make([]byte, 1<<20)
	for range streamed / len(data) {
		if _, err := conn.Write(data); err != nil {
			return errors.Join(err, conn.Close())
		}
	}
	err = conn.CloseWrite()
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	return errors.Join(err, conn.Close())
}

// echo sends bytes one by one and waits for each to come back.
func (v vmBench) echo(ctx context.Context, to netip.Addr) error {
	conn, err := v.dial(ctx, to, portEcho)
	if err != nil {
		return err
	}
	b := []byte{0}
	for range roundTrips {
		if _, err = conn.Write(b); err != nil {
			break
		}
		if _, err = io.ReadFull(conn, b); err != nil {
			break
		}
	}
	return errors.Join(err, conn.Close())
}
