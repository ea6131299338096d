//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/tests/bootsector"
	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

const (
	// rowTime bounds one row; on a busy machine most take a few seconds.
	rowTime  = time.Minute
	upTime   = 5 * time.Minute
	downTime = 2 * time.Minute

	stateBytes = 512 << 20

	sectorFile  = "sector.raw"
	sectorImage = "vm.ambipod.io/http/127.0.0.1/" + sectorFile + ":latest"
)

// rig is the node that all rows share.
type rig struct {
	n        *node.Node
	cri      cri // through criproxy
	direct   cri // vmruntime's own
	conns    []*grpc.ClientConn
	folder   string // of the program under test and of armed
	armed    string // the file that arms fail points
	foreign  *foreign
	vm, cont *witness // nil while they are not there
	broken   bool     // a row has left something
}

// witness is a pod that must not notice any of it.
type witness struct {
	*pod
	container *runtimeapi.Container
	started   int64
	qemu      process.Process // of a VM
}

var shared *rig

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if err := shared.takeDown(code != 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rowTime)
	t.Cleanup(cancel)
	return ctx
}

// theRig starts the node when it is first asked for.
func theRig(t *testing.T) *rig {
	t.Helper()
	if shared != nil {
		return shared
	}
	ctx, cancel := context.WithTimeout(t.Context(), upTime)
	defer cancel()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "ambipod-faults") //nolint:usetesting // a test's own would end with the first test
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "vmruntime")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "failpoints", "-o", program, "./cmd/vmruntime")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build vmruntime with fail points: %v\n%s", err, out)
	}
	r := &rig{folder: folder, armed: filepath.Join(folder, "failpoint")}
	r.n, err = node.Start(ctx, node.Config{
		Checkout: top, Name: fmt.Sprintf("faults%d", os.Getpid()), Without: []string{node.Kubelet},
		Accelerator: "tcg", StateBytes: stateBytes,
		Programs: map[string]string{node.VMRuntime: program},
		Env:      map[string][]string{node.VMRuntime: {failpoint.EnvFile + "=" + r.armed}},
	})
	if err != nil {
		t.Fatal(err)
	}
	shared = r
	if err := r.furnish(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// furnish makes what the rows need on the node.
func (r *rig) furnish(ctx context.Context) (err error) {
	if err := bootsector.WriteDisk(ctx, filepath.Join(r.n.SiteDir(), sectorFile)); err != nil {
		return err
	}
	if r.cri, err = r.dial(r.n.CRISocket()); err != nil {
		return err
	}
	if r.direct, err = r.dial(r.n.VMRuntimeSocket()); err != nil {
		return err
	}
	for _, image := range []string{sectorImage, node.VMImage, node.ContainerImage} {
		if _, err := r.cri.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
			return err
		}
	}
	if r.foreign, err = makeForeign(ctx, r.n); err != nil {
		return err
	}
	return r.startWitnesses(ctx)
}

func (r *rig) dial(socket string) (cri, error) {
	conn, err := node.Dial(socket)
	if err != nil {
		return cri{}, err
	}
	r.conns = append(r.conns, conn)
	return cri{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)}, nil
}

func (r *rig) startWitnesses(ctx context.Context) (err error) {
	if r.cont, err = r.startWitness(ctx, containerKind); err != nil {
		return err
	}
	if r.vm, err = r.startWitness(ctx, sectorKind); err != nil {
		return err
	}
	if _, err := node.WaitPodLog(ctx, r.vm.logPath(0), bootsector.Ready); err != nil {
		return err
	}
	found, err := r.qemus(r.vm.container.GetId())
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the witness has %d QEMU processes: %w", len(found), err)
	}
	r.vm.qemu = found[0]
	return nil
}

// dismissWitnesses is for rows that no pod outlives.
func (r *rig) dismissWitnesses(t *testing.T) {
	t.Helper()
	for _, w := range []*witness{r.cont, r.vm} {
		if w == nil {
			continue
		}
		if err := w.remove(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	r.cont, r.vm = nil, nil
}

func (r *rig) startWitness(ctx context.Context, k kind) (*witness, error) {
	p := r.pod(k)
	container, err := p.run(ctx)
	if err != nil {
		return nil, err
	}
	status, err := p.status(ctx, container.GetId())
	return &witness{pod: p, container: container, started: status.GetStartedAt()}, err
}

// check says what a witness has noticed.
func (w *witness) check(ctx context.Context) error {
	list, err := w.containers(ctx)
	if err != nil {
		return err
	}
	if len(list) != 1 || list[0].GetId() != w.container.GetId() || list[0].GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%s pod, which nobody touched, was %v and is %v", w.name, w.container, list)
	}
	boxes, err := w.sandboxes(ctx)
	if err != nil {
		return err
	}
	if len(boxes) != 1 || boxes[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("%s pod, which nobody touched, has the sandboxes %v", w.name, boxes)
	}
	status, err := w.status(ctx, w.container.GetId())
	if err == nil && status.GetStartedAt() != w.started {
		err = fmt.Errorf("%s pod, which nobody touched, started at %d and now says %d", w.name, w.started, status.GetStartedAt())
	}
	return err
}

// checkGuest speaks to a guest through its serial port and waits for the echo in the
// pod's log.
func (r *rig) checkGuest(ctx context.Context, p *pod, id string, attempt uint32) error {
	word := fmt.Sprintf("<%d>", time.Now().UnixNano())
	if err := r.typeTo(ctx, id, word); err != nil {
		return err
	}
	data := []byte{}
	return node.Until(ctx, "the guest's echo is in its log", func(context.Context) (err error) {
		if data, err = os.ReadFile(p.logPath(attempt)); err == nil && !strings.Contains(joined(data), word) {
			err = fmt.Errorf("the log ends with %q", data[max(0, len(data)-200):])
		}
		return err
	})
}

// joined is a CRI log's text without what the format puts around it.
func joined(log []byte) string {
	var text strings.Builder
	for line := range strings.Lines(string(log)) {
		if fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4); len(fields) == 4 {
			text.WriteString(fields[3])
		}
	}
	return text.String()
}

// typeTo writes to a guest's serial port.
func (r *rig) typeTo(ctx context.Context, id, text string) error {
	socket := filepath.Join(r.n.VMRunDir(), "vms", vmID(id)[:16], "console.sock")
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	// The guest's port has a small buffer: it must have read one letter before the
	// next comes. It echoes each.
	echo := make([]byte, 1)
	for _, letter := range []byte(text) {
		if _, err := conn.Write([]byte{letter}); err != nil {
			return err
		}
		if strings.ContainsRune("ptkrwf", rune(letter)) {
			continue // a command without echo
		}
		if err := conn.SetReadDeadline(time.Now().Add(callTime)); err != nil {
			return err
		}
		if _, err := conn.Read(echo); err != nil {
			return fmt.Errorf("no echo of %q: %w", letter, err)
		}
	}
	return nil
}

// snapshot lists all that pods leave on the node, and all files of its own.
func (r *rig) snapshot(ctx context.Context) ([]string, error) {
	lines, err := r.n.Leftovers(ctx)
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{r.n.VMStateDir(), r.n.VMRunDir(), filepath.Join(r.n.Root(), "libvirt")} {
		err := filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && !passing(path) {
				lines = append(lines, "path: "+path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	processes, err := r.n.ProcessesNaming("")
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		command := strings.ReplaceAll(string(line), "\x00", " ")
		// What each libvirtd is started by stays as the parent of its QEMUs.
		// Foreign QEMU is looked at by itself.
		if err == nil && !r.isDaemon(p) && !strings.Contains(command, "sleep infinity ") && p != r.foreignQEMU() {
			lines = append(lines, fmt.Sprintf("process of the node: %d %s", p.PID, command))
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

func (r *rig) foreignQEMU() process.Process {
	if r.foreign == nil {
		return process.Process{}
	}
	return r.foreign.qemu
}

func (r *rig) isDaemon(p process.Process) bool {
	return slices.ContainsFunc([]string{
		node.Registry, node.ImageSite, node.Containerd, node.Virtlogd, node.Libvirtd, node.VMRuntime, node.CRIProxy, node.Kubelet,
	}, func(daemon string) bool { return r.n.Process(daemon) == p })
}

// passing tells files that come and go whatever the rows do: rotated logs, the sockets
// and PID files of daemons that may be down.
func passing(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, "console.log.") || strings.HasSuffix(name, "sock") || strings.HasSuffix(name, "sock-ro") ||
		strings.HasSuffix(name, "sock-admin") || strings.HasSuffix(name, ".pid") && strings.HasPrefix(name, "libvirtd")
}

// difference tells what is in one of two snapshots alone.
func difference(before, after []string) error {
	var lines []string
	for _, line := range after {
		if !slices.Contains(before, line) {
			lines = append(lines, "new: "+line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			lines = append(lines, "gone: "+line)
		}
	}
	if len(lines) > 0 {
		return errors.New(strings.Join(lines, "\n"))
	}
	return nil
}

// invariants are what must hold after each row.
func (r *rig) invariants(ctx context.Context, before []string) error {
	err := node.Until(ctx, "nothing is left of the row", func(ctx context.Context) error {
		after, err := r.snapshot(context.WithoutCancel(ctx)) // the last look, too, ends with what is left
		if err != nil {
			return err
		}
		return difference(before, after)
	})
	if err != nil {
		return err
	}
	if err := r.foreign.check(ctx); err != nil {
		return err
	}
	for _, w := range []*witness{r.cont, r.vm} {
		if w == nil {
			continue
		}
		if err := w.check(ctx); err != nil {
			return err
		}
	}
	if r.vm == nil {
		return nil
	}
	found, err := r.qemus(r.vm.container.GetId())
	if err != nil || len(found) != 1 || found[0] != r.vm.qemu {
		return fmt.Errorf("the VM that nobody touched was process %v and is %v: %w", r.vm.qemu, found, err)
	}
	return r.checkGuest(ctx, r.vm.pod, r.vm.container.GetId(), 0)
}

// arm makes vmruntime end at a fail point, or stop there with " freeze" after its name.
func (r *rig) arm(point string) error { return os.WriteFile(r.armed, []byte(point), 0o600) }

// restore starts what a row has killed.
func (r *rig) restore(ctx context.Context) error {
	for _, daemon := range []string{node.Containerd, node.Libvirtd, node.VMRuntime, node.CRIProxy} {
		if !r.n.Alive(daemon) {
			if err := r.n.StartDaemon(ctx, daemon); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rig) takeDown(failed bool) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	if failed {
		dir := filepath.Join(r.n.Checkout(), "_run", "faults-logs")
		err = r.n.SaveLogs(dir)
		fmt.Fprintf(os.Stderr, "the daemons' logs are kept in %s\n", dir)
	}
	for _, conn := range r.conns {
		err = errors.Join(err, conn.Close())
	}
	if r.foreign != nil {
		err = errors.Join(err, r.foreign.remove(ctx))
	}
	err = errors.Join(err, r.n.Stop(ctx), os.RemoveAll(r.folder))
	remains, remainsErr := r.n.Remains()
	if len(remains) > 0 {
		err = errors.Join(err, fmt.Errorf("left of the node: %s", strings.Join(remains, "; ")))
	}
	return errors.Join(err, remainsErr)
}

// stateOf is the letter of a process's state, T for one that was stopped.
func stateOf(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	letter, _, _ := strings.Cut(rest, " ")
	return letter, nil
}
