package criserver

import (
	"context"
	"errors"
	"log/slog"
	"os"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/diskusage"
	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
	"github.com/ambipod/ambipod/pkg/network/fdserver"
	"github.com/ambipod/ambipod/pkg/tpm"
	"github.com/ambipod/ambipod/pkg/volumes"
)

// Network gives a sandbox its namespace and addresses, and a VM its taps.
type Network interface {
	Status(ctx context.Context) error
	Setup(ctx context.Context, pod network.Pod) (*network.Result, error)
	Teardown(ctx context.Context, pod network.Pod) error
	Check(ctx context.Context, sandboxID string) error
	Connect(ctx context.Context, sandboxID string, result *network.Result) error
	Disconnect(sandboxID string) error
	OpenTaps(ctx context.Context, sandboxID string, result *network.Result) ([][]*os.File, error)
	Stats(sandboxID string) ([]network.Counters, error)
	Sweep(ctx context.Context, live map[string]bool) error
}

// Guests asks what is inside of a running VM, and may never get an answer.
type Guests interface {
	AgentCommand(ctx context.Context, uuid, command string) (string, error)
	Stats(ctx context.Context, uuid string) (libvirttools.Stats, error)
}

// Domains runs VMs: libvirt, behind its shim.
type Domains interface {
	Check(ctx context.Context) (libvirttools.Info, error)
	Define(ctx context.Context, xml string) error
	Start(ctx context.Context, uuid string, disks ...libvirttools.OpenDisk) error
	Shutdown(ctx context.Context, uuid string) error
	Destroy(ctx context.Context, uuid string) error
	Undefine(ctx context.Context, uuid string) error
	State(ctx context.Context, uuid string) (libvirttools.State, error)
	Owned(ctx context.Context) ([]libvirttools.OwnedDomain, error)
	Watch(ctx context.Context, handle func(libvirttools.Event)) error
	Guests
}

// Images holds the disk images that VMs boot from.
type Images interface {
	Pull(ctx context.Context, name string, credentials imagestore.Credentials) (imagestore.Image, error)
	Resolve(name string) (imagestore.Image, error)
	List() ([]imagestore.Image, error)
	Remove(ctx context.Context, nameOrID string) error
	Hold(id, holder string) error
	Release(holder string) error
	SetHolders(holders map[string][]string) error
	Usage() (diskusage.Usage, error)
}

// Grants lets a VM's vmwrapper fetch its tap descriptors.
type Grants interface {
	Grant(key string, grant fdserver.Grant)
	Revoke(key string)
}

// Shares serves folders of this machine to VMs.
type Shares interface {
	Serve(ctx context.Context, share volumes.Share) (*volumes.Serving, error)
}

// Machines knows what VMs can be on this node.
type Machines interface {
	Abilities(ctx context.Context, emulator, accel, machine string) (libvirttools.Abilities, error)
}

// Objects reads ConfigMaps and Secrets that a pod names and does not mount.
type Objects interface {
	Data(ctx context.Context, kind, namespace, name string) (map[string][]byte, error)
}

// TPMs emulates the TPMs of VMs.
type TPMs interface {
	Check() error
	Start(ctx context.Context, t tpm.TPM) error
}

// Options is what a Server is made of; every field is required unless it says
// otherwise.
type Options struct {
	Layout  layout.Layout
	Records *metadata.Store
	Images  Images
	Network Network
	Domains Domains
	Grants  Grants
	Shares  Shares
	TPMs    TPMs

	Machines Machines
	Objects  Objects

	Accel        string                  // libvirttools.AccelKVM or AccelTCG
	AccelReason  string                  // why it was chosen, for people
	HideFeatures []string                // of the CPU, that guests must not see; see accel.Choice
	CgroupDriver runtimeapi.CgroupDriver // how kubelet names cgroups
	Emulator     string                  // the QEMU that vmwrapper becomes
	Wrapper      string                  // vmwrapper, the <emulator> of every domain
	DomainLogs   string                  // folder of libvirt's own logs, one for each domain
	QEMUUser     User                    // owner of the files that QEMU writes

	// HostRoot is the folder below which this process finds the files of volumes, "" if
	// where kubelet says. It is for a vmruntime in a container of its own.
	HostRoot string
	// Folders is how VMs have folders of this machine if their pods do not say: virtiofs
	// or 9p.
	Folders string
	// RawDevices are patterns of the names below /dev of devices that any pod's author
	// may have by a flexvolume; empty for none.
	RawDevices []string

	StreamAddress string // for exec, attach and port-forward; see streaming.Options
	StreamCert    string // PEM file of their certificate; empty is no TLS
	StreamKey     string // its key's
	GuestHelper   string // vmguest, which gives commands in guests their streams

	// What Status tells people and vmctl; both may be empty.
	LibvirtURI    string
	StatusAddress string // see package statushttp

	Version string // Ambipod's own
	Logger  *slog.Logger
}

// User is a user of this machine, by number.
type User struct{ UID, GID int }

// Server implements the CRI's RuntimeService and ImageService. Use New.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	Options

	locks    *keyedMutex
	exits    *exits
	events   *eventHub
	rates    *rates
	mounts   mountpoints
	figures  *guestFigures
	consoles *consoles
	access   access
	counters *counters
	making   *idSet        // sandboxes that a RunPodSandbox of this process is making
	overdue  *idSet        // sandboxes and containers that Recover did not get done
	hurry    chan struct{} // asks Maintain not to wait
}

var (
	_ runtimeapi.RuntimeServiceServer = (*Server)(nil)
	_ runtimeapi.ImageServiceServer   = (*Server)(nil)
)

// New returns a server that knows the records but has not yet looked at what became
// of their VMs; call Recover before serving, and Close at the end.
func New(ctx context.Context, o Options) (*Server, error) {
	counters := newCounters()
	consoles, err := newConsoles(o.Logger, counters.losses.Inc)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Options:  o,
		locks:    newKeyedMutex(),
		exits:    newExits(),
		events:   newEventHub(),
		rates:    newRates(),
		figures:  newGuestFigures(o.Domains.Stats, o.Logger),
		consoles: consoles,
		counters: counters,
		making:   newIDSet(),
		overdue:  newIDSet(),
		hurry:    make(chan struct{}, 1),
	}
	if s.access, err = newAccess(ctx, s); err != nil {
		return nil, errors.Join(err, consoles.close(ctx))
	}
	return s, nil
}
