//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

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

func (v vmctl) gone(t *testing.T) {
	if got := v.items(t); len(got) != 0 {
		t.Errorf("VMs are %+v", got)
	}
	if r := v.try(t, "console", v.name()); r.code != 1 || !strings.Contains(r.err, "the node has none at all") {
		t.Errorf("%+v", r)
	}
}
