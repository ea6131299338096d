package vmctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

// readme is the first file of every archive.
const readme = `What vmctl diagnose found on a node, for a bug report.

Secrets are removed: values of environment variables, cloud-init data, passwords, tokens, keys,
and the arguments of commands. Names, addresses, images, and what daemons and QEMU logged are
here, the guests' consoles are not. Look through it before you give it away.

problems.txt  what could not be collected, and why
versions.json programs
cri/          what each CRI server answers
vms/          all that is known of each VM, with libvirt's description
status/       metrics, downloads and goroutines of the daemons
config/       configuration
daemons/      their processes
logs/         the ends of their logs, and of QEMU's
host/         kernel, control groups, KVM, memory, file systems
`

// journalLines is how much of each unit's journal is collected.
const journalLines = "2000"

// units are the services whose journals are of interest.
var units = []string{"vmruntime", "criproxy", "kubelet", "containerd", "libvirtd", "virtlogd", "virtqemud"}

// Diagnosis says what Diagnose collects beside what it finds by itself.
type Diagnosis struct {
	Settings Settings
	Version  string   // of vmctl
	Config   []string // files and folders of configuration
	Logs     []string // files and folders of logs
	Proxy    string   // criproxy's configuration file; it need not be there
	Now      time.Time
	Logger   *slog.Logger
}

// Diagnose writes one compressed tar file with all that a bug report needs, and no
// secrets. It returns what could not be collected; daemons may well be away.
func Diagnose(ctx context.Context, d Diagnosis, to io.Writer) (problems []string, err error) {
	a := newArchive(to, "ambipod-"+d.Now.UTC().Format("20060102T150405Z"), d.Now)
	a.add("README.txt", []byte(readme))
	d.collectVMRuntime(ctx, a)
	d.collectProxy(ctx, a)
	for _, file := range d.Config {
		if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
			continue // Ambipod needs none
		}
		a.tree(path.Join("config", file), file)
	}
	for _, file := range d.Logs {
		a.tree(path.Join("logs", file), file)
	}
	collectJournals(ctx, a)
	collectHost(a, d.Settings.Layout.State)
	return a.problems, a.close()
}

// collectVMRuntime asks vmruntime, or whoever has its socket, and libvirt.
func (d Diagnosis) collectVMRuntime(ctx context.Context, a *archive) {
	n, err := Connect(ctx, d.Settings, d.Logger)
	if err != nil {
		a.problem("vmruntime", err)
		return
	}
	defer func() { a.problem("vmruntime", n.Close()) }()
	n.collectAnswers(ctx, a, "runtime")
	a.daemon("runtime", n.Socket)
	versions, err := json.Marshal(n.Versions(ctx, d.Version))
	a.document("versions.json", versions, err)
	if facts, err := n.Facts(ctx); err != nil {
		a.problem("libvirt", err)
	} else if facts.LibvirtLogs != "" {
		a.tree("logs/qemu", facts.LibvirtLogs)
	}
	if status, err := n.Status(ctx); err != nil {
		a.problem("status", err)
	} else {
		a.collectStatus(ctx, "vmruntime", status)
	}
	vms, err := n.List(ctx)
	a.problem("vms", err)
	for _, vm := range vms {
		document, err := json.Marshal(n.Inspect(ctx, vm))
		a.document(fmt.Sprintf("vms/%s_%s_%s.json", fileName(vm.Namespace), fileName(vm.Pod), vm.ShortID()), document, err)
	}
}

// collectProxy asks criproxy, unless it has been asked already.
func (d Diagnosis) collectProxy(ctx context.Context, a *archive) {
	config, err := proxy.LoadConfig(d.Proxy)
	if errors.Is(err, os.ErrNotExist) {
		config, err = proxy.DefaultConfig(), nil
	}
	if err != nil {
		a.problem("criproxy", err)
		return
	}
	if config.MetricsAddress != "" {
		a.collectStatus(ctx, "criproxy", statushttp.NewClient(config.MetricsAddress))
	}
	s := d.Settings
	s.Endpoint = config.Listen
	n, err := Connect(ctx, s, d.Logger)
	if err != nil {
		a.problem("criproxy", err)
		return
	}
	defer func() { a.problem("criproxy", n.Close()) }()
	n.collectAnswers(ctx, a, "criproxy")
	a.daemon("criproxy", n.Socket)
}

// collectAnswers adds what a CRI server answers to every question about the node.
func (n *Node) collectAnswers(ctx context.Context, a *archive, name string) {
	for method, ask := range map[string]func(context.Context) (proto.Message, error){
		"Version": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
		},
		"Status": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		},
		"RuntimeConfig": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
		},
		"ListPodSandbox": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		},
		"ListContainers": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		},
		"ListContainerStats": func(ctx context.Context) (proto.Message, error) {
			return n.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		},
		"ListImages": func(ctx context.Context) (proto.Message, error) {
			return n.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		},
		"ImageFsInfo": func(ctx context.Context) (proto.Message, error) {
			return n.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		},
	} {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		answer, err := ask(ctx)
		cancel()
		var document []byte
		if err == nil {
			document, err = protojson.Marshal(answer)
		}
		a.document(path.Join("cri", name, method+".json"), document, err)
	}
}

func (a *archive) collectStatus(ctx context.Context, name string, status *statushttp.Client) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for file, page := range map[string]string{
		"metrics.txt": statushttp.PathMetrics, "ready.txt": statushttp.PathReady, "goroutines.txt": statushttp.PathGoroutines,
	} {
		file = path.Join("status", name, file)
		content, err := status.Get(ctx, page)
		if err != nil {
			a.problem(file, err)
			continue
		}
		a.text(file, string(content))
	}
	if name == "vmruntime" {
		content, err := status.Get(ctx, statushttp.PathDownloads)
		a.document(path.Join("status", name, "downloads.json"), content, err)
	}
}

// collectJournals asks systemd, where there is one, for the daemons' messages.
func collectJournals(ctx context.Context, a *archive) {
	journalctl, err := exec.LookPath("journalctl")
	if _, noSystemd := os.Stat("/run/systemd/system"); err != nil || noSystemd != nil {
		return
	}
	for _, unit := range units {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		out, err := exec.CommandContext(ctx, journalctl, "--unit", unit, "--lines", journalLines, "--no-pager", "--quiet").Output()
		cancel()
		if err != nil {
			a.problem("journal of "+unit, err)
			continue
		}
		if len(out) > 0 {
			a.text("logs/journal/"+unit+".txt", strings.ToValidUTF8(string(out), "?"))
		}
	}
}

// fileName makes a part of a file's name of a Kubernetes name, which normally is one.
func fileName(name string) string { return filepath.Base(filepath.Clean("/" + name)) }
