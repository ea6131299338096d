package criserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ambipod/ambipod/pkg/console"
	"github.com/ambipod/ambipod/pkg/guestagent"
	"github.com/ambipod/ambipod/pkg/guestexec"
	"github.com/ambipod/ambipod/pkg/guestexec/wire"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/network"
	"github.com/ambipod/ambipod/pkg/streaming"
	"github.com/ambipod/ambipod/pkg/unixsocket"
)

// access is how people and probes get into running VMs.
type access struct {
	commands *guestexec.Executor
	consoles *console.Attachments
	streams  *streaming.Server
}

// newAccess listens for streams already, so that URLs can be given out.
func newAccess(ctx context.Context, s *Server) (access, error) {
	streams, err := streaming.Listen(ctx, streaming.Options{
		Address: s.StreamAddress, CertFile: s.StreamCert, KeyFile: s.StreamKey, Runtime: streamRuntime{s}, Logger: s.Logger,
	})
	if err != nil {
		return access{}, err
	}
	// libvirtd makes the sockets and listens, and gives the files to QEMU's user.
	owners := []int{os.Geteuid(), s.QEMUUser.UID}
	return access{
		commands: guestexec.New(guestexec.Options{Helper: s.GuestHelper, SocketOwners: owners, Logger: s.Logger}),
		consoles: console.NewAttachments(func(ctx context.Context, socket string) (net.Conn, error) {
			return unixsocket.Dial(ctx, socket, owners...)
		}),
		streams: streams,
	}, nil
}

func (a access) close() error {
	a.commands.Close()
	return a.streams.Close()
}

// ServeStreams serves exec, attach and port-forward until the context ends.
func (s *Server) ServeStreams(ctx context.Context) error { return s.access.streams.Serve(ctx) }

// streamRuntime does what a stream's connection is for: Exec is in exec.go, Attach in
// attach.go and PortForward in port_forward.go.
type streamRuntime struct{ server *Server }

var _ streaming.Runtime = streamRuntime{}

// runningContainer finds a VM that can be got into.
func (s *Server) runningContainer(id string) (container, error) {
	vm, err := s.findContainer(id)
	if err != nil {
		return container{}, err
	}
	if !vm.Running() {
		return container{}, fmt.Errorf("VM %s does not run: %w", vm.ID, errdefs.ErrFailedPrecondition)
	}
	return vm, nil
}

// agents carries commands to guest agents by libvirt.
type agents struct{ domains Domains }

func (a agents) AgentCommand(ctx context.Context, uuid, command string) (string, error) {
	answer, err := a.domains.AgentCommand(ctx, uuid, command)
	return answer, guestagent.Classify(err, libvirttools.ErrAgentSilent, libvirttools.ErrAgentRefused)
}

// guest is where commands in a VM run. People know the VM by its pod.
func (s *Server) guest(vm container) guestexec.VM {
	name := "VM " + vm.ID
	if box, err := s.findSandbox(vm.SandboxID); err == nil {
		name = "VM of pod " + podName(box.config)
	}
	return guestexec.VM{
		ID:     vm.ID,
		Name:   name,
		Socket: s.Layout.VM(vm.ID).ExecSocket(),
		Agent:  guestagent.New(agents{s.Domains}, vm.DomainUUID, name),
	}
}

// execute runs a command in a guest: with live streams where the guest can have the
// helper, else, if it needs neither input nor a terminal, by the agent alone.
func (s *Server) execute(ctx context.Context, vm container, c guestexec.Command) (int, error) {
	guest := s.guest(vm)
	box, err := s.findSandbox(vm.SandboxID)
	if err != nil {
		return 0, err
	}
	attached, err := networkResult(box.Sandbox)
	if err != nil {
		return 0, err
	}
	c.Env = environmentOf(vm, attached.DNS)
	code, err := s.access.commands.Run(ctx, guest, c)
	if !errors.Is(err, guestexec.ErrUnsupported) || c.TTY || c.Stdin != nil {
		return code, err
	}
	s.Logger.DebugContext(ctx, "guest cannot have the helper, running the command by its agent", "container", vm.ID, "err", err)
	result, err := guest.Agent.Run(ctx, guestagent.Command{Argv: c.Argv, Env: forAgent(c.Env)})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", c.Argv[0], err)
	}
	if c.Stdout != nil {
		_, err = c.Stdout.Write(result.Stdout)
	}
	if c.Stderr != nil && err == nil {
		_, err = c.Stderr.Write(result.Stderr)
	}
	return result.ExitCode, err
}

// environmentOf is the environment of the pod's container, which its commands have.
func environmentOf(vm container, dns network.DNS) []string {
	var env []string
	for _, variable := range environment(vm.config, dns) {
		env = append(env, variable.Name+"="+variable.Value)
	}
	return env
}

// agentPath is where programs are when the pod does not say it.
const agentPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// forAgent completes an environment: a program that the agent starts with one has
// nothing of the guest's own.
func forAgent(env []string) []string {
	if len(env) == 0 || slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, "PATH=") }) {
		return env
	}
	return append([]string{agentPath}, env...)
}

// sizes translates the sizes of a terminal until there are no more, or the context
// ends.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan wire.Size {
	if from == nil {
		return nil
	}
	to := make(chan wire.Size)
	go func() {
		defer close(to)
		for {
			select {
			case <-ctx.Done():
				return
			case size, more := <-from:
				if !more {
					return
				}
				select {
				case to <- wire.Size{Rows: size.Height, Cols: size.Width}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return to
}

// cappedBuffers keep what fits of two outputs together and throw the rest away.
type cappedBuffers struct {
	stdout, stderr cappedBuffer

	mu   sync.Mutex // guards room and both buffers' contents
	room int
}

func newCappedBuffers(room int) *cappedBuffers {
	b := &cappedBuffers{room: room}
	b.stdout.all, b.stderr.all = b, b
	return b
}

// cappedBuffer is one of two.
type cappedBuffer struct {
	all  *cappedBuffers
	kept bytes.Buffer
}

// Write never fails: a command that says too much goes on.
func (b *cappedBuffer) Write(p []byte) (int, error) {
	b.all.mu.Lock()
	defer b.all.mu.Unlock()
	n, _ := b.kept.Write(p[:min(len(p), b.all.room)])
	b.all.room -= n
	return len(p), nil
}
