//go:build integration

// Package deploy tests what deploy/ ships for clusters, without a cluster: the script
// that sets nodes up, the Debian package, units, alerts and the dashboard.
package deploy

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const top = "../.."

// run runs a program and returns what it printed; it must be installed.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v; hack/setup.sh test installs it", err)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := run(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// tree is every file below a folder with its text.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// kubeadmUnit is kubelet's service as Debian's packages of Kubernetes have it.
const kubeadmUnit = "[Service]\nEnvironmentFile=-/etc/default/kubelet\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_EXTRA_ARGS\n"

func TestNodeSetUpIsUndone(t *testing.T) {
	const endpoint = "--container-runtime-endpoint=unix:///run/ambipod/criproxy.sock"
	for name, defaults := range map[string]string{
		"no defaults":    "",
		"empty argument": "KUBELET_EXTRA_ARGS=\n",
		"arguments":      "# ours\nKUBELET_EXTRA_ARGS=\"--v=2 --node-ip=192.0.2.1\"\n",
		"other variable": "FOO=bar\n",
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root+"/usr/bin/criproxy", "")
			write(t, root+"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", kubeadmUnit)
			if defaults != "" {
				write(t, root+"/etc/default/kubelet", defaults)
			}
			before := tree(t, root)
			script := func(verb string) string { return mustRun(t, top+"/deploy/node/ambipod-node", verb, "--root", root) }

			script("install")
			after := tree(t, root)
			if out := script("install"); !strings.Contains(out, "nothing was changed") {
				t.Errorf("the second install says %q", out)
			}
			if diff := cmp.Diff(after, tree(t, root)); diff != "" {
				t.Errorf("the second install changed files:\n%s", diff)
			}
			text := after["/etc/default/kubelet"]
			if strings.Count(text, endpoint) != 1 || strings.Count(text, "KUBELET_EXTRA_ARGS=") != 1 {
				t.Errorf("kubelet's defaults are %q", text)
			}
			for _, word := range []string{"--v=2", "--node-ip=192.0.2.1", "FOO=bar"} {
				if strings.Contains(defaults, word) && !strings.Contains(text, word) {
					t.Errorf("%s is gone from %q", word, text)
				}
			}
			if out := script("status"); strings.Contains(out, "no ") {
				t.Errorf("status after install:\n%s", out)
			}

			script("remove")
			if diff := cmp.Diff(before, tree(t, root)); diff != "" {
				t.Errorf("remove left the node otherwise than install found it:\n%s", diff)
			}
			if out := script("remove"); !strings.Contains(out, "nothing was changed") {
				t.Errorf("the second remove says %q", out)
			}
			if out, err := run(t, top+"/deploy/node/ambipod-node", "status", "--root", root); err == nil {
				t.Errorf("status finds nothing missing after remove:\n%s", out)
			}
		})
	}
}

func TestNodeSetUpRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no criproxy": {map[string]string{"/lib/systemd/system/kubelet.service": kubeadmUnit}, "criproxy is not installed"},
		"no kubelet":  {map[string]string{"/usr/bin/criproxy": ""}, "no kubelet.service"},
		"fixed arguments": {map[string]string{
			"/usr/bin/criproxy": "", "/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n",
		}, "containerRuntimeEndpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range test.files {
				write(t, root+path, text)
			}
			before := tree(t, root)
			out, err := run(t, top+"/deploy/node/ambipod-node", "install", "--root", root)
			if err == nil || !strings.Contains(out, test.want) || strings.Count(out, "\n") != 1 {
				t.Errorf("it says %q, error %v; want one line with %q", out, err, test.want)
			}
			if diff := cmp.Diff(before, tree(t, root)); diff != "" {
				t.Errorf("it changed files all the same:\n%s", diff)
			}
		})
	}
}

// The package installs files that systemd takes without a complaint, and the same
// source gives the same package.
func TestDebianPackage(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "criproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-X main.version=1.2.3", "-o", binary, "github.com/ambipod/ambipod/cmd/criproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("BINARY", binary)
	for _, out := range []string{"a", "b"} {
		mustRun(t, top+"/deploy/debian/build.sh", "1.2.3", filepath.Join(dir, out))
	}
	const name = "criproxy_1.2.3_amd64.deb"
	first, err := os.ReadFile(filepath.Join(dir, "a", name))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(filepath.Join(dir, "b", name))
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("two builds differ (%v)", err)
	}

	root := filepath.Join(dir, "root")
	mustRun(t, "dpkg-deb", "-x", filepath.Join(dir, "a", name), root)
	mustRun(t, root+"/usr/bin/criproxy", "-config", root+"/etc/ambipod/criproxy.yaml", "-check-config")
	if out := mustRun(t, root+"/usr/bin/criproxy", "-version"); out != "criproxy version 1.2.3\n" {
		t.Errorf("the package's criproxy says that it is %q", out)
	}
	// What the units refer to, beside the package's own files.
	targets, err := filepath.Glob("/lib/systemd/system/*.target")
	if err != nil || len(targets) == 0 {
		t.Fatalf("systemd's own targets are not on this machine (%v); hack/setup.sh test installs them", err)
	}
	mustRun(t, "cp", append(targets, root+"/lib/systemd/system")...)
	mustRun(t, "install", "-D", "/bin/kill", root+"/bin/kill")
	// It is a systemd, which notes in /run when it has read units.
	const verify = `mount -t tmpfs none /run && exec systemd-analyze verify --man=no --root="$0" "$@"`
	if out := mustRun(t, "unshare", "--mount", "sh", "-c", verify, root, "criproxy.service", "criproxy.socket"); out != "" {
		t.Errorf("systemd complains:\n%s", out)
	}
	// dpkg reads what it needs to install and remove the package.
	fields := mustRun(t, "dpkg-deb", "--field", filepath.Join(dir, "a", name), "Package", "Version", "Architecture")
	if fields != "Package: criproxy\nVersion: 1.2.3\nArchitecture: amd64\n" {
		t.Errorf("the package calls itself\n%s", fields)
	}
}

// alert finds the names of alerts in their file.
var alert = regexp.MustCompile(`(?m)^  - alert: (\w+)$`)

// Every alert is tested.
func TestAlerts(t *testing.T) {
	tests := read(t, "deploy/overlays/monitoring/alerts_test.yaml")
	found := alert.FindAllStringSubmatch(read(t, "deploy/overlays/monitoring/alerts.yaml"), -1)
	if len(found) == 0 {
		t.Fatal("there are no alerts")
	}
	for _, a := range found {
		if strings.Count(tests, "alertname: "+a[1]+"\n") < 2 {
			t.Errorf("alerts_test.yaml does not say when %s comes and when it does not", a[1])
		}
	}
	mustRun(t, "promtool", "check", "rules", top+"/deploy/overlays/monitoring/alerts.yaml")
	mustRun(t, "promtool", "test", "rules", top+"/deploy/overlays/monitoring/alerts_test.yaml")
}

var (
	// metric finds names of our metrics.
	metric = regexp.MustCompile(`\b(?:ambipod|criproxy)_[a-z_]+`)
	// row is that of a metric in the documentation: names, and labels with their values.
	row = regexp.MustCompile("(?m)^\\| (`(?:ambipod|criproxy)_.*?`) \\| (.*?) ?\\|")
	// selector is a metric with what is asked of its labels; matcher is one of these.
	selector = regexp.MustCompile(`\b((?:ambipod|criproxy)_[a-z_]+)\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)(?:=~|!~|!=|=)\\?"([^"\\]*)`)
)

// documentedMetrics are the labels of each metric, as its daemon's documentation has them.
func documentedMetrics(t *testing.T) map[string]string {
	t.Helper()
	labels := map[string]string{}
	for _, page := range []string{"monitoring.md", "criproxy.md"} {
		for _, line := range row.FindAllStringSubmatch(read(t, "docs/"+page), -1) {
			for _, name := range metric.FindAllString(line[1], -1) {
				labels[name] = line[2]
			}
		}
	}
	return labels
}

// Alerts and dashboard use metrics that the daemons are documented to have, with labels
// and values that they have.
func TestMetricsExist(t *testing.T) {
	documented := documentedMetrics(t)
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		text := read(t, "deploy/overlays/monitoring/"+file)
		for _, name := range metric.FindAllString(text, -1) {
			if _, found := documented[strings.TrimSuffix(name, "_bucket")]; !found {
				t.Errorf("%s uses %s, which no daemon has", file, name)
			}
		}
		for _, s := range selector.FindAllStringSubmatch(text, -1) {
			labels, values, listed := strings.Cut(documented[strings.TrimSuffix(s[1], "_bucket")], ": ")
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				if m[1] == "instance" {
					continue // Prometheus' own
				}
				if !slices.Contains(strings.Split(labels, ", "), m[1]) {
					t.Errorf("%s looks at label %s of %s, which has %s", file, m[1], s[1], labels)
				}
				for value := range strings.SplitSeq(m[2], "|") {
					if listed && !slices.Contains(strings.Split(values, ", "), value) {
						t.Errorf("%s looks for %s=%q of %s, which can be %s", file, m[1], value, s[1], values)
					}
				}
			}
		}
	}
}

// Every query of the dashboard is one that Prometheus can parse.
func TestDashboard(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "deploy/overlays/monitoring/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Panels) == 0 {
		t.Fatal("the dashboard has no panels")
	}
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	variables := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			rules.WriteString("  - record: dashboard:query\n    expr: '" + variables.Replace(target.Expr) + "'\n" +
				"    labels: {panel: \"" + panel.Title + "\", query: '" + variables.Replace(target.Expr) + "'}\n")
		}
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	write(t, file, rules.String())
	mustRun(t, "promtool", "check", "rules", file)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
