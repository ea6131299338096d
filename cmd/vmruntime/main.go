// Command vmruntime is a CRI server whose containers are VMs; docs/architecture.md
// shows where it stands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/golang/glog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/logging"
)

// version is set by the linker.
var version = "development"

// Exit codes.
const (
	exitFailure = 1 // it could not run, or ended by a fault
	exitUsage   = 2 // the command line is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	command := newCommand()
	err := command.ExecuteContext(ctx)
	glog.Flush()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "vmruntime:", err)
	if usage := (usageError{}); errors.As(err, &usage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailure)
}

// usageError marks errors of the command line.
type usageError struct{ error }

func newCommand() *cobra.Command {
	var s settings
	command := &cobra.Command{
		Use:   "vmruntime",
		Short: "CRI server whose containers are virtual machines",
		Long: `vmruntime serves the CRI (runtime.v1) for VM pods: it gives a pod its network by CNI, keeps
disk images, and runs each container as a libvirt domain. kubelet reaches it through criproxy.

VMs outlive vmruntime: stop it, restart it, upgrade it while they run.`,
		Example: `  # with the system's libvirtd
  vmruntime --logtostderr

  # a second node on the same machine, with a private libvirtd
  vmruntime --state-dir /srv/node2/state --run-dir /srv/node2/run \
            --libvirt-uri 'qemu+unix:///system?socket=/srv/node2/libvirt-sock'

  # refuse to start rather than to emulate
  vmruntime --accelerator kvm`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(command *cobra.Command, _ []string) error {
			return run(command.Context(), s, logging.New())
		},
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see vmruntime --help", err)}
	})
	s.addFlags(command.Flags())
	command.Flags().AddGoFlagSet(flag.CommandLine) // glog's
	command.AddCommand(newTPM(), newShare(), newNodeLabels())
	return command
}

// settings are the command line's.
type settings struct {
	layout             layout.Layout
	listen             string
	libvirtURI         string
	domainLogs         string
	emulator           string
	wrapper            string
	virtiofsd          string
	swtpm              string
	kubeconfig         string
	flexvolumeDir      string
	hostRoot           string
	rawDevices         []string
	guestHelper        string
	streamAddress      string
	streamCert         string
	streamKey          string
	statusAddress      string
	cniConfDir         string
	cniRoot            string
	cniBinDirs         []string
	cniExclusive       bool
	accelerator        string
	protocol           string
	translationDirs    []string
	fileRoots          []string
	insecureRegistries []string
	qemuUser           string
	cgroupDriver       string
}

func (s *settings) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&s.layout.State, "state-dir", layout.DefaultState, "what must survive a reboot: records, images, disks")
	flags.StringVar(&s.layout.Run, "run-dir", layout.DefaultRun, "sockets and network namespaces")
	flags.StringVar(&s.listen, "listen", "", "socket on which to serve the CRI (default RUN-DIR/vmruntime.sock)")
	flags.StringVar(&s.libvirtURI, "libvirt-uri", "qemu:///system", "libvirtd that runs the VMs")
	flags.StringVar(&s.domainLogs, "libvirt-log-dir", "/var/log/libvirt/qemu", "where libvirtd logs its domains; a removed VM's log is removed from it")
	flags.StringVar(&s.emulator, "emulator", "/usr/bin/qemu-system-x86_64", "QEMU that runs the VMs")
	flags.StringVar(&s.wrapper, "vmwrapper", "", "vmwrapper that libvirt starts in its place; QEMU's user must reach it (default: beside this program)")
	flags.StringVar(&s.guestHelper, "vmguest", "", "program sent into guests to give exec its streams (default: beside this program)")
	flags.StringVar(&s.streamAddress, "stream-address", "127.0.0.1:0", "loopback address and port for exec, attach and port-forward; port 0 chooses one")
	flags.StringVar(&s.streamCert, "stream-tls-cert", "", "certificate (PEM) for TLS on that address; kubelet's machine must trust it for that IP address (default: no TLS)")
	flags.StringVar(&s.streamKey, "stream-tls-key", "", "key (PEM) of that certificate")
	flags.StringVar(&s.statusAddress, "status-address", "", "where to show metrics, health and progress over HTTP: HOST:PORT, unix:/PATH or off (default unix:RUN-DIR/vmruntime-status.sock)")
	flags.StringVar(&s.virtiofsd, "virtiofsd", "/usr/lib/qemu/virtiofsd", "server of the folders that VMs share with this machine")
	flags.StringVar(&s.swtpm, "swtpm", "/usr/bin/swtpm", "emulator of the TPMs of VMs that have one")
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "how to ask the API server for ConfigMaps and Secrets that a pod's annotations name and the pod does not mount: a file, or in-cluster for the service account of the pod that vmruntime runs in (default: such a pod is refused)")
	flags.StringVar(&s.flexvolumeDir, "flexvolume-dir", "", "kubelet's --volume-plugin-dir, to put Virtlet's flexvolume driver into (default: nowhere)")
	flags.StringVar(&s.hostRoot, "host-root", "", "where the node's root directory is mounted, for a vmruntime in a container: folders and devices of pods are looked up below it (default: where kubelet says)")
	flags.StringSliceVar(&s.rawDevices, "raw-devices", nil, "patterns such as loop* of devices below /dev that any pod may have by a flexvolume of type raw")
	flags.StringVar(&s.cniConfDir, "cni-conf-dir", "/etc/cni/net.d", "folder of the CNI configuration, the first file by name counts")
	flags.StringSliceVar(&s.cniBinDirs, "cni-bin-dir", []string{"/opt/cni/bin", "/usr/lib/cni"}, "folders of CNI plugins")
	flags.StringVar(&s.cniRoot, "cni-root", "", "where the node's root directory is mounted, for a vmruntime in a container: CNI plugins are looked up and run in it, and RUN-DIR must be the same folder there")
	flags.BoolVar(&s.cniExclusive, "cni-exclusive", false, "the networks of --cni-conf-dir are for VM pods alone: at start and every few minutes, plugins free all addresses that are none of theirs (verb GC)")
	flags.StringVar(&s.accelerator, "accelerator", "auto", "auto, kvm or tcg; auto tries KVM out and falls back to software emulation")
	flags.StringVar(&s.protocol, "download-protocol", "https", "https or http, for image names that name no protocol")
	flags.StringSliceVar(&s.translationDirs, "image-translations-dir", nil, "folders of image name translations, the most important first; see docs/images.md")
	flags.StringSliceVar(&s.fileRoots, "image-file-root", nil, "folders below which image name translations may name file:// URLs")
	flags.StringSliceVar(&s.insecureRegistries, "insecure-registry", nil, "hosts of OCI registries that may be spoken to without TLS")
	flags.StringVar(&s.qemuUser, "qemu-user", "libvirt-qemu", "user that libvirtd runs QEMU as")
	flags.StringVar(&s.cgroupDriver, "cgroup-driver", "cgroupfs", "cgroupfs or systemd, as kubelet has it")
}
