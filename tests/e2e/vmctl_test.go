//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/statushttp"
	"github.com/ambipod/ambipod/tests/node"
)

// planted is a secret that must never be shown.
const planted = "planted-5ecr3t-0xdeadbeef"

// TestVMCtl uses every verb of vmctl on one VM.
func TestVMCtl(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	key := sshKey(t)
	p := vmctlPod(t, c, key)
	p.waitReady(t)
	eventually(t, "the guest's agent answers", func(ctx context.Context) error {
		_, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}})
		return err
	})
	v := vmctl{p}
	t.Run("status pages", v.statusPages)
	t.Run("list", v.list)
	t.Run("names", v.names)
	t.Run("kubectl vm", v.plugin)
	t.Run("version", v.version)
	t.Run("completion", v.completion)
	t.Run("exec", v.exec)
	t.Run("exec in a terminal", v.terminal)
	t.Run("console", v.console)
	t.Run("ssh", func(t *testing.T) { v.ssh(t, key) })
	t.Run("screenshot", v.screenshot)
	t.Run("vnc", v.vnc)
	t.Run("images", v.images)
	t.Run("images behind a password", v.secretImages)
	t.Run("inspect", v.inspect)
	t.Run("diagnose", v.diagnose)
	p.removeAtEnd(t)
	t.Run("VM that is gone", v.gone)
	nothingLeft(t, n)
}

// vmctl is a VM to be looked after.
type vmctl struct{ *pod }

// sshKey makes a pair of keys and returns the private one's file.
func sshKey(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen, of openssh-client: %v: %s", err, out)
	}
	return file
}

// vmctlPod has a screen, an SSH key and secrets.
func vmctlPod(t *testing.T, c client, key string) *pod {
	t.Helper()
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	c.pull(t, vmKind)
	p := &pod{client: c, config: podConfig(t, c.n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	p.config.Annotations = map[string]string{
		"vm.ambipod.io/screen":    "true",
		"vm.ambipod.io/ssh-keys":  string(public),
		"vm.ambipod.io/user-data": "write_files:\n- path: /root/planted\n  content: " + planted + "\n",
		"example.org/token":       planted,
	}
	p.container.Envs = []*runtimeapi.KeyValue{{Key: "PLANTED", Value: []byte(planted)}}
	t.Cleanup(func() { p.removeAtEnd(t) })
	sandbox, err := c.RunPodSandbox(deadline(t), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: vmKind.handler})
	if err != nil {
		t.Fatal(err)
	}
	p.sandboxID = sandbox.GetPodSandboxId()
	p.create(t)
	p.start(t)
	return p
}

func (v vmctl) name() string {
	return v.config.GetMetadata().GetNamespace() + "/" + v.config.GetMetadata().GetName()
}

// command is the node's vmctl.
func (v vmctl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, v.n.VMCtl(), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	return cmd
}

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

func (v vmctl) try(t *testing.T, args ...string) result {
	t.Helper()
	cmd := v.command(deadline(t), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("vmctl %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// run is try for a command that must succeed.
func (v vmctl) run(t *testing.T, args ...string) string {
	t.Helper()
	r := v.try(t, args...)
	if r.code != 0 {
		t.Fatalf("vmctl %v ended with %d: %s", args, r.code, r.err)
	}
	return r.out
}

func (v vmctl) statusPages(t *testing.T) {
	status := statushttp.NewClient(statushttp.Unix(v.n.VMRuntimeStatus()))
	metrics, err := status.Get(deadline(t), statushttp.PathMetrics)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := v.ListImages(deadline(t), &runtimeapi.ListImagesRequest{})
	must(t, err)
	images := 0 // of VMs: other tests may have left some
	for _, image := range answer.GetImages() {
		if strings.HasPrefix(image.GetId(), "vm.") {
			images++
		}
	}
	for _, want := range []string{
		`ambipod_vms{state="running"} 1`, `ambipod_libvirt_connected 1`, fmt.Sprintf("ambipod_images %d\n", images), `ambipod_dhcp_servers 1`,
		`ambipod_calls_total{code="OK",method="StartContainer"} `, `ambipod_call_seconds_count{method="RunPodSandbox"} `,
		`ambipod_exec_sessions 1`, `ambipod_dhcp_messages_total{outcome="answered"} `, `ambipod_image_pulls_total{result="pulled"} `,
		`go_goroutines `, `process_open_fds `, `ambipod_build_info{version=`,
	} {
		if !strings.Contains(string(metrics), "\n"+want) {
			t.Errorf("no metric %s", want)
		}
	}
	if page, err := status.Get(deadline(t), statushttp.PathReady); err != nil || string(page) != "ok\n" {
		t.Errorf("readyz says %q, %v", page, err)
	}
	if info, err := os.Stat(v.n.VMRuntimeStatus()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
}

// item is what the test looks at of a VM in JSON.
type item struct {
	Namespace, Pod, State, Image, ContainerID string
	IPs                                       []string
	CPUs                                      int
	MemoryBytes                               int64
}

func (v vmctl) items(t *testing.T, args ...string) []item {
	t.Helper()
	var list struct{ Items []item }
	if err := json.Unmarshal([]byte(v.run(t, append(args, "list", "-o", "json")...)), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func (v vmctl) list(t *testing.T) {
	want := item{
		Namespace: "e2e", Pod: v.config.GetMetadata().GetName(), State: "running", Image: node.VMImage, IPs: []string{v.ip(t)}, CPUs: 1, MemoryBytes: guestMemory,
	}
	for _, endpoint := range []string{v.n.VMRuntimeSocket(), v.n.CRIProxySocket()} {
		want.ContainerID = v.id
		if endpoint == v.n.VMRuntimeSocket() {
			want.ContainerID = strings.TrimPrefix(v.id, "vm.")
		}
		got := v.items(t, "--runtime-endpoint", endpoint)
		if len(got) != 1 || !slices.Equal(got[0].IPs, want.IPs) {
			t.Fatalf("%s has %+v, want %+v", endpoint, got, want)
		}
		got[0].IPs, want.IPs = nil, nil
		if fmt.Sprint(got[0]) != fmt.Sprint(want) {
			t.Errorf("%s has %+v, want %+v", endpoint, got[0], want)
		}
		want.IPs = []string{v.ip(t)}
	}
	table := v.run(t, "list")
	for _, part := range []string{"NAME", v.name(), "running", v.ip(t), "192Mi", node.VMImage} {
		if !strings.Contains(table, part) {
			t.Errorf("the table lacks %q:\n%s", part, table)
		}
	}
	if got := v.run(t, "ls", "-o", "name"); got != v.name()+"\n" {
		t.Errorf("names are %q", got)
	}
	if got := v.run(t, "ls", "-n", "elsewhere", "-o", "name"); got != "" {
		t.Errorf("namespace elsewhere has %q", got)
	}
	if got := v.run(t, "ls", "-o", "yaml"); !strings.Contains(got, "pod: "+v.config.GetMetadata().GetName()+"\n") {
		t.Errorf("as YAML: %s", got)
	}
}

// names are all that a VM can be called by.
func (v vmctl) names(t *testing.T) {
	short := strings.TrimPrefix(v.id, "vm.")[:12]
	for _, name := range []string{v.name(), v.config.GetMetadata().GetName(), short, "vm." + short, v.id, v.sandboxID} {
		if got := v.run(t, "exec", name, "--", "hostname"); strings.TrimSpace(got) != v.config.GetHostname() {
			t.Errorf("%s: hostname %q", name, got)
		}
	}
	r := v.try(t, "exec", "nobody", "--", "true")
	if r.code != 1 || !strings.Contains(r.err, `no VM is called "nobody", there are `+v.name()) || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	r = v.try(t, "--runtime-endpoint", "/nowhere/x.sock", "list")
	if r.code != 1 || !strings.Contains(r.err, "/nowhere/x.sock") || !strings.Contains(r.err, "--runtime-endpoint") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

func (v vmctl) version(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal([]byte(v.run(t, "version", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"vmctl", "runtime", "libvirt", "qemu", "accelerator"} {
		if text, _ := got[field].(string); text == "" {
			t.Errorf("no version of %s: %v", field, got)
		}
	}
	if text := v.run(t, "version"); !strings.Contains(text, "libvirt") {
		t.Errorf("versions are %s", text)
	}
}

func (v vmctl) completion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if script := v.run(t, "completion", shell); !strings.Contains(script, "vmctl") {
			t.Errorf("%s: %q", shell, script)
		}
	}
	// What the scripts ask.
	if got := v.run(t, "__complete", "console", ""); !strings.Contains(got, v.name()) {
		t.Errorf("console completes to %q", got)
	}
	if got := v.run(t, "__complete", "images", "rm", ""); !strings.Contains(got, node.VMImage) {
		t.Errorf("images rm completes to %q", got)
	}
}

func (v vmctl) exec(t *testing.T) {
	r := v.try(t, "exec", v.name(), "--", "sh", "-c", "echo out; echo err >&2; exit 42")
	if r != (result{42, "out\n", "err\n"}) {
		t.Errorf("%+v", r)
	}
	cmd := v.command(deadline(t), "exec", "-i", v.name(), "--", "cat")
	cmd.Stdin = strings.NewReader("hello\n")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("cat gave back %q, %v", out, err)
	}
	if r := v.try(t, "exec", "-t", v.name(), "--", "true"); r.code != 2 || !strings.Contains(r.err, "terminal") {
		t.Errorf("-t without a terminal: %+v", r)
	}
	if r := v.try(t, "exec", v.name(), "--", "no-such-program"); r.code != 1 || !strings.Contains(r.err, "no-such-program") {
		t.Errorf("a program that is not there: %+v", r)
	}
}

// screen is a terminal in which a command runs.
type screen struct {
	t        *testing.T
	cmd      *exec.Cmd
	terminal *os.File
	mu       sync.Mutex
	shown    bytes.Buffer
	done     chan struct{} // closed when the command has closed its terminal
}

func (v vmctl) onScreen(t *testing.T, size pty.Winsize, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, cmd: v.command(deadline(t), args...), done: make(chan struct{})}
	var err error
	if s.terminal, err = pty.StartWithSize(s.cmd, &size); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(s, s.terminal)
	}()
	t.Cleanup(func() { _ = s.terminal.Close() })
	return s
}

// Write implements io.Writer for what the command shows.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

func (s *screen) see(want string) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("the screen shows %q", want), func(context.Context) error {
		if text := s.text(); !strings.Contains(text, want) {
			return fmt.Errorf("it shows %q", text)
		}
		return nil
	})
}

func (s *screen) typeIn(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.terminal, keys); err != nil {
		s.t.Fatal(err)
	}
}

// end waits for the command and returns its exit code.
func (s *screen) end() int {
	s.t.Helper()
	err := s.cmd.Wait()
	<-s.done
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// terminal changes the size of the window while a command runs.
func (v vmctl) terminal(t *testing.T) {
	s := v.onScreen(t, pty.Winsize{Rows: 17, Cols: 71}, "exec", "-it", v.name(), "--", "sh")
	s.typeIn("until [ \"$(stty size)\" = '17 71' ]; do :; done; echo first''size\r")
	s.see("firstsize")
	if err := pty.Setsize(s.terminal, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	s.typeIn("until [ \"$(stty size)\" = '33 99' ]; do :; done; echo second''size; exit 7\r")
	s.see("secondsize")
	if code := s.end(); code != 7 {
		t.Errorf("exit code %d, want 7:\n%s", code, s.text())
	}
}

// console attaches two terminals to the serial console.
func (v vmctl) console(t *testing.T) {
	first := v.onScreen(t, pty.Winsize{Rows: 24, Cols: 80}, "console", v.name())
	first.see("Ctrl-] detaches")
	first.typeIn("\r")
	first.see("login:")
	second := v.onScreen(t, pty.Winsize{Rows: 24, Cols: 80}, "console", v.config.GetMetadata().GetName())
	second.see("Ctrl-] detaches")
	second.typeIn("somebody")
	second.see("somebody")
	first.see("somebody")
	first.typeIn("\x1d")
	if code := first.end(); code != 0 {
		t.Errorf("detaching ended with %d: %s", code, first.text())
	}
	second.typeIn("else")
	second.see("else")
	second.typeIn("\x1d")
	if code := second.end(); code != 0 {
		t.Errorf("detaching ended with %d: %s", code, second.text())
	}
}

func (v vmctl) ssh(t *testing.T, key string) {
	known := filepath.Join(t.TempDir(), "known")
	args := []string{"ssh", "-i", key, "-o", "UserKnownHostsFile=" + known, "-o", "BatchMode=yes", "root@" + v.name(), "--"}
	r := v.try(t, append(args, "cat", "/etc/hostname; exit 6")...)
	if r.code != 6 || strings.TrimSpace(r.out) != v.config.GetHostname() {
		t.Errorf("%+v", r)
	}
	// Names of hosts may be hashed.
	alias := strings.TrimPrefix(v.id, "vm.")
	if out, err := exec.CommandContext(deadline(t), "ssh-keygen", "-F", alias, "-f", known).CombinedOutput(); err != nil {
		t.Errorf("the VM's key is not kept: %v: %s", err, out)
	}
	if r := v.try(t, append(args, "true")...); r.code != 0 {
		t.Errorf("a second time: %+v", r)
	}
	if r := v.try(t, "tunnel", v.name(), "9"); r.code != 1 || !strings.Contains(r.err, "port 9") {
		t.Errorf("a port where nobody listens: %+v", r)
	}
}

func (v vmctl) screenshot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "screen.png")
	v.run(t, "screenshot", v.name(), "-f", file)
	picture, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer picture.Close()
	decoded, err := png.Decode(picture)
	if err != nil {
		t.Fatal(err)
	}
	// VGA text of 80 by 25 characters.
	if size := decoded.Bounds().Size(); size.X != 720 || size.Y != 400 {
		t.Errorf("the picture has %v points, want 720 by 400", size)
	}
	if r := v.try(t, "screenshot", v.name(), "-f", "/nowhere/x.png"); r.code != 1 || !strings.Contains(r.err, "/nowhere/x.png") {
		t.Errorf("%+v", r)
	}
}

// vnc connects two viewers, one after another.
func (v vmctl) vnc(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	cmd := v.command(ctx, "vnc", v.name())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	_, address, _ := strings.Cut(string(line[:n]), "vnc://")
	address, _, _ = strings.Cut(address, ";")
	for range 2 {
		viewer, err := (&net.Dialer{}).DialContext(ctx, "tcp", intoNode(t, ctx, v.n, address))
		if err != nil {
			t.Fatal(err)
		}
		greeting := make([]byte, len("RFB 003.008\n"))
		if _, err := io.ReadFull(viewer, greeting); err != nil || !strings.HasPrefix(string(greeting), "RFB ") {
			t.Errorf("%s greets with %q, %v", address, greeting, err)
		}
		viewer.Close()
	}
	cancel()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("vnc ended with %d", code)
	}
	if r := v.try(t, "vnc", v.name(), "--listen", "0.0.0.0:0"); r.code != 2 || !strings.Contains(r.err, "loopback") {
		t.Errorf("a screen for the network: %+v", r)
	}
}

// images pulls another copy of the guest from a server that is slow.
func (v vmctl) images(t *testing.T) {
	if table := v.run(t, "images"); !strings.Contains(table, node.VMImage) || !strings.Contains(table, v.name()) || !strings.Contains(table, "112Mi") {
		t.Errorf("images are:\n%s", table)
	}
	name, release := v.slowSite(t)
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	watch := v.command(ctx, "images", "--watch")
	var watched syncBuffer
	watch.Stdout, watch.Stderr = &watched, &watched
	pull := v.command(deadline(t), "images", "pull", name)
	var progress, id syncBuffer
	pull.Stdout, pull.Stderr = &id, &progress
	for _, cmd := range []*exec.Cmd{watch, pull} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for what, shown := range map[string]*syncBuffer{"pull": &progress, "images --watch": &watched} {
		eventually(t, what+" shows that half of it is here", func(context.Context) error {
			if text := shown.String(); !strings.Contains(text, name+"  [###############...............]  50%") {
				return fmt.Errorf("it shows %q", text)
			}
			return nil
		})
	}
	release()
	if err := pull.Wait(); err != nil {
		t.Errorf("pull: %v: %s", err, progress.String())
	}
	cancel()
	_ = watch.Wait()
	if code := watch.ProcessState.ExitCode(); code != 0 {
		t.Errorf("watching ended with %d: %s", code, watched.String())
	}
	image := strings.TrimSpace(id.String())
	if got := v.run(t, "images", "-o", "json"); !strings.Contains(got, image) {
		t.Errorf("%q is not among the images: %s", image, got)
	}
	v.run(t, "images", "rm", name)
	if r := v.try(t, "images", "rm", name); r.code != 1 || !strings.Contains(r.err, name) {
		t.Errorf("an image that is gone: %+v", r)
	}
	if r := v.try(t, "images", "pull", "docker.io/nginx"); r.code != 1 || !strings.Contains(r.err, "docker.io/nginx") {
		t.Errorf("a container image: %+v", r)
	}
}

// syncBuffer takes a command's output while somebody reads it.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is what has been written.
func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// slowSite serves an image of which the second half comes when release is called, at
// an address that the node reaches.
func (v vmctl) slowSite(t *testing.T) (name string, release func()) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(v.n.SiteDir(), "tiny.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	content = append(content, make([]byte, 512)...) // other content than the VM's image
	wait := make(chan struct{})
	release = sync.OnceFunc(func() { close(wait) })
	t.Cleanup(release)
	site := serveInNode(t, v.n, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		half := len(content) / 2
		_, _ = w.Write(content[:half])
		_ = http.NewResponseController(w).Flush()
		<-wait
		_, _ = w.Write(content[half:])
	})
	t.Cleanup(release)
	return "vm.ambipod.io/http/" + site + "/slow.qcow2:latest", release
}

// serveInNode serves on the node's loopback while the test runs, and returns where.
func serveInNode(t *testing.T, n *node.Node, handler http.HandlerFunc) string {
	t.Helper()
	listener := listenInNode(t, n)
	site := &http.Server{ReadHeaderTimeout: time.Minute, Handler: handler}
	served := make(chan struct{})
	go func() { defer close(served); _ = site.Serve(listener) }()
	t.Cleanup(func() { site.Close(); <-served })
	return listener.Addr().String()
}

// plugin is kubectl's own way to vmctl: it looks for kubectl-vm.
func (v vmctl) plugin(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink(filepath.Join(v.n.Checkout(), "_build", "bin", "vmctl"), filepath.Join(dir, "kubectl-vm")))
	kubectl := func(args ...string) (string, error) {
		cmd := exec.CommandContext(deadline(t), filepath.Join(v.n.Checkout(), "_tools", "bin", "kubectl"), append([]string{"vm"}, args...)...)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"),
			"AMBIPOD_RUN_DIR="+filepath.Dir(v.n.VMRuntimeSocket()), "AMBIPOD_STATE_DIR="+v.n.VMStateDir())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := kubectl("list", "-o", "name"); err != nil || out != v.name()+"\n" {
		t.Errorf("kubectl vm list: %q %v", out, err)
	}
	if out, err := kubectl("console", "--help"); err != nil || !strings.Contains(out, "kubectl vm console") {
		t.Errorf("kubectl vm console --help: %q %v", out, err)
	}
}

// secretImages pulls an image that takes a password.
func (v vmctl) secretImages(t *testing.T) {
	disk, err := os.ReadFile(filepath.Join(v.n.SiteDir(), "tiny.qcow2"))
	must(t, err)
	disk = append(disk, make([]byte, 1024)...) // other content than other images
	site := serveInNode(t, v.n, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != planted {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "disk.img", time.Unix(0, 0), bytes.NewReader(disk))
	})
	name := "vm.ambipod.io/http/" + site + "/disk.img:latest"
	pull := func(password string, args ...string) result {
		t.Helper()
		cmd := v.command(deadline(t), append([]string{"images", "pull", name}, args...)...)
		var out, complaints bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(password), &out, &complaints
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		r := result{cmd.ProcessState.ExitCode(), out.String(), complaints.String()}
		if strings.Contains(r.out+r.err, planted) {
			t.Errorf("the password is shown: %+v", r)
		}
		return r
	}
	if r := pull(""); r.code != 1 || !strings.Contains(r.err, name) || !strings.Contains(r.err, "401") {
		t.Errorf("without a password: %+v", r)
	}
	if r := pull("wrong\n", "--user", "me"); r.code != 1 || !strings.Contains(r.err, "401") {
		t.Errorf("with a wrong password: %+v", r)
	}
	r := pull(planted+"\n", "--user", "me")
	if r.code != 0 || !strings.Contains(v.run(t, "images", "-o", "json"), strings.TrimSpace(r.out)) {
		t.Errorf("with the password: %+v", r)
	}
	v.run(t, "images", "rm", name)
}

func (v vmctl) inspect(t *testing.T) {
	text := v.run(t, "inspect", v.name(), "-o", "json")
	var got struct {
		VM    item
		Disks []struct{ Path string }
		// What CRI and libvirt say.
		DomainXML string
		Container struct {
			Info struct {
				Cgroup string
			}
		}
		Sandbox struct {
			Info struct{ Network map[string]any }
		}
		Problems []string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.VM.Pod != v.config.GetMetadata().GetName() || len(got.Disks) == 0 || !strings.Contains(got.Disks[0].Path, "root.qcow2") ||
		got.Container.Info.Cgroup == "" || len(got.Sandbox.Info.Network) == 0 || !strings.Contains(got.DomainXML, "<domain") || len(got.Problems) != 0 {
		t.Errorf("something is missing: %s", text)
	}
	if strings.Contains(text, planted) {
		t.Errorf("a secret is shown: %s", text)
	}
	if !strings.Contains(text, "PLANTED") || !strings.Contains(text, `"vm.ambipod.io/screen": "true"`) {
		t.Errorf("too much is hidden: %s", text)
	}
}

// diagnose looks for all that belongs into an archive, and for what does not.
func (v vmctl) diagnose(t *testing.T) {
	dir := t.TempDir()
	file, config, log := filepath.Join(dir, "a.tar.gz"), filepath.Join(dir, "conf"), filepath.Join(dir, "daemon.log")
	if err := errors.Join(
		os.Mkdir(config, 0o700),
		os.WriteFile(filepath.Join(config, "images.yaml"), []byte("url: https://me:"+planted+"@host/disk\npassword: "+planted+"\n"), 0o600),
		os.WriteFile(log, []byte("Authorization: Bearer "+planted+"\nharmless line\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	v.run(t, "diagnose", "-f", file, "--config", config, "--log", log, "--log", v.n.LogFile(node.VMRuntime), "--criproxy-config", v.n.CRIProxyConfig())
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the archive: %v, %v", info, err)
	}
	members := unpack(t, file)
	for name, want := range map[string]string{
		"README.txt":                                         "Secrets are removed",
		"versions.json":                                      `"libvirt"`,
		"cri/runtime/ListContainers.json":                    strings.TrimPrefix(v.id, "vm."),
		"cri/criproxy/ListPodSandbox.json":                   v.sandboxID,
		"cri/runtime/Status.json":                            "RuntimeReady",
		"status/vmruntime/metrics.txt":                       "ambipod_vms",
		"status/vmruntime/goroutines.txt":                    "goroutine ",
		"daemons/runtime/cmdline":                            "vmruntime",
		"daemons/criproxy/status":                            "VmRSS",
		"config" + filepath.Join(config, "images.yaml"):      "https://[redacted]@host/disk",
		"logs" + log + "/daemon.log":                         "harmless line",
		"logs" + v.n.LogFile("vmruntime") + "/vmruntime.log": "serving",
		"host/facts.json":                                    "kernel",
		"host/proc/meminfo":                                  "MemTotal",
	} {
		if !strings.Contains(members[name], want) {
			t.Errorf("%s lacks %q: %.300q", name, want, members[name])
		}
	}
	var domain, emulator bool
	for name, content := range members {
		if strings.Contains(content, planted) {
			t.Errorf("%s has a secret: %s", name, content)
		}
		domain = domain || strings.HasPrefix(name, "vms/") && strings.Contains(content, "AMBIPOD_FD_KEY")
		emulator = emulator || strings.HasPrefix(name, "logs/qemu/") && strings.Contains(content, "AMBIPOD_FD_KEY=[redacted]")
	}
	if !domain || !emulator {
		t.Errorf("libvirt's description is there: %t, QEMU's log: %t; %v", domain, emulator, slices.Sorted(maps.Keys(members)))
	}
	if problems := members["problems.txt"]; problems != "" {
		t.Errorf("problems: %s", problems)
	}
}

// listenInNode listens on the node's own loopback.
func listenInNode(t *testing.T, n *node.Node) net.Listener {
	t.Helper()
	var listener net.Listener
	if err := ns.WithNetNSPath(n.Namespace(), func(ns.NetNS) (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is there at once
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return listener
}

// unpack returns the files of an archive by their names in its folder.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]string{}
	for r := tar.NewReader(packed); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		members[name] = string(content)
	}
}

func (v vmctl) gone(t *testing.T) {
	if got := v.items(t); len(got) != 0 {
		t.Errorf("VMs are %+v", got)
	}
	if r := v.try(t, "console", v.name()); r.code != 1 || !strings.Contains(r.err, "the node has none at all") {
		t.Errorf("%+v", r)
	}
}
