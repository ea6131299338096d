package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/vmctl"
)

var update = flag.Bool("update", false, "write the reference in docs/vmctl.md")

func TestMain(m *testing.M) {
	// Neither may be what the tests find.
	for _, name := range []string{"AMBIPOD_RUNTIME_ENDPOINT", "AMBIPOD_STATUS_ADDRESS", "AMBIPOD_LIBVIRT_URI", "AMBIPOD_RUN_DIR", "AMBIPOD_STATE_DIR"} {
		if err := os.Unsetenv(name); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

func try(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, null, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	const nowhere = "/nowhere/cri.sock"
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"vmctl"}, 0, "Available Commands:"},
		{[]string{"vmctl", "nonsense"}, 2, `vmctl: unknown command "nonsense"`},
		{[]string{"vmctl", "list", "--nonsense"}, 2, "unknown flag: --nonsense; see vmctl list --help"},
		{[]string{"vmctl", "list", "extra"}, 2, "see vmctl list --help"},
		{[]string{"vmctl", "console"}, 2, "accepts 1 arg(s), received 0; see vmctl console --help"},
		{[]string{"vmctl", "exec", "web"}, 2, "name a VM and, after --, a command"},
		{[]string{"vmctl", "exec", "-t", "web", "--", "sh"}, 2, "-t needs a terminal"},
		{[]string{"vmctl", "screenshot", "web"}, 2, "name the file to write with -f"},
		{[]string{"vmctl", "vnc", "web", "--listen", "0.0.0.0:1"}, 2, "an address of the loopback"},
		{[]string{"vmctl", "tunnel", "web", "70000"}, 2, `"70000" is no port`},
		{[]string{"vmctl", "list", "--run-dir", dir}, 1, "vmctl: neither " + dir + "/vmruntime.sock nor " + dir + "/criproxy.sock is there, start vmruntime or name its socket, or criproxy's, with --runtime-endpoint\n"},
		{[]string{"vmctl", "console", "web", "--runtime-endpoint", "unix://" + nowhere}, 1, "nobody serves the CRI at " + nowhere},
		{[]string{"/usr/bin/kubectl-vm", "list", "--nonsense"}, 2, "kubectl vm: unknown flag: --nonsense; see kubectl vm list --help"},
		{[]string{"kubectl-vm", "console", "--help"}, 0, "  kubectl vm console my-vm\n"},
		{[]string{"kubectl-vm", "console", "--help"}, 0, "Usage:\n  kubectl vm console NAME"},
		{[]string{"vmctl", "version", "--run-dir", dir}, 0, "vmctl    development\n"},
		{[]string{"vmctl", "--version"}, 0, "development"},
		{[]string{"vmctl", "completion", "bash"}, 0, "__start_vmctl"},
	} {
		code, out, errs := try(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("%q: code %d, %q, %q; want %d and %q", c.args, code, out, errs, c.code, c.says)
		}
		if code != 0 && strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: more than one sentence: %q", c.args, errs)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("AMBIPOD_RUNTIME_ENDPOINT", "/from/environment.sock")
	if code, _, errs := try(t, "vmctl", "list"); code != 1 || !strings.Contains(errs, "/from/environment.sock") {
		t.Errorf("code %d, %q", code, errs)
	}
	if _, _, errs := try(t, "vmctl", "list", "--runtime-endpoint", "/from/flag.sock"); !strings.Contains(errs, "/from/flag.sock") {
		t.Errorf("the flag does not count: %q", errs)
	}
}

// verbs calls fn for every command that a person may type.
func verbs(c *cobra.Command, fn func(*cobra.Command)) {
	for _, child := range c.Commands() {
		if child.Hidden || child.Name() == "help" || child.Name() == "completion" {
			continue
		}
		fn(child)
		verbs(child, fn)
	}
}

func testApp() *app { return newApp("vmctl", nil, &bytes.Buffer{}, &bytes.Buffer{}) }

func TestEveryVerbIsExplained(t *testing.T) {
	verbs(testApp().command(), func(c *cobra.Command) {
		if c.Short == "" || !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s has no short text or no example", c.CommandPath())
		}
		if c.ValidArgsFunction == nil {
			t.Errorf("%s completes nothing", c.CommandPath())
		}
	})
}

func TestSSHArguments(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	a := testApp()
	a.settings.Endpoint, a.settings.Layout = "/x y/it's%h.sock", layout.Layout{Run: "/run/a", State: "/var/a"}
	vm := vmctl.VM{Pod: "web", ContainerID: "vm.abc"}
	args, err := a.sshArguments(vm, sshOptions{login: "root", key: "/k", port: 2222, options: []string{"LogLevel=ERROR"}}, []string{"ls", "-l"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(args[:2], []string{"-o", "LogLevel=ERROR"}) {
		t.Errorf("the caller's options do not come first: %q", args)
	}
	proxy := args[3]
	if !strings.HasPrefix(proxy, "ProxyCommand='") || !strings.HasSuffix(proxy, " 'tunnel' 'vm.abc' '2222'") || !strings.Contains(proxy, `'--runtime-endpoint=/x y/it'\''s%%h.sock'`) {
		t.Errorf("proxy command: %s", proxy)
	}
	want := []string{"-l", "root", "-i", "/k", "-o", "IdentitiesOnly=yes", "--", "web", "ls", "-l"}
	if got := args[len(args)-len(want):]; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Contains(args, `UserKnownHostsFile="/home/me/.ssh/ambipod_known_hosts"`) || !slices.Contains(args, "HostKeyAlias=vm.abc") {
		t.Errorf("known hosts: %q", args)
	}
	if _, err := a.sshArguments(vm, sshOptions{port: 0}, nil); err == nil {
		t.Error("port 0 is accepted")
	}
}

// A file is complete or not there, and what was there before stays if it fails.
func TestCreate(t *testing.T) {
	a, file := testApp(), filepath.Join(t.TempDir(), "f")
	if err := a.write(file, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := a.create(file, func(to *os.File) error {
		_, _ = to.WriteString("half")
		return os.ErrDeadlineExceeded
	}); err == nil {
		t.Error("a failure is hidden")
	}
	content, err := os.ReadFile(file)
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*"))
	if string(content) != "one" || err != nil || len(left) != 1 {
		t.Errorf("the file has %q, %v; the folder %q", content, err, left)
	}
}

// begins is where the generated part of docs/vmctl.md begins.
const begins = "<!-- from here on generated: go test ./cmd/vmctl -run TestDocumentation -update -->\n"

func TestDocumentation(t *testing.T) {
	const file = "../../docs/vmctl.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	guide, _, found := strings.Cut(string(page), begins)
	if !found {
		t.Fatalf("%s has no line %q", file, begins)
	}
	want := guide + begins + reference(testApp().command())
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page) != want {
		t.Errorf("%s is not what the program says; make it anew: go test ./cmd/vmctl -run TestDocumentation -update", file)
	}
}

func reference(root *cobra.Command) string {
	var text strings.Builder
	fmt.Fprint(&text, "\n## Reference\n")
	verbs(root, func(c *cobra.Command) {
		fmt.Fprintf(&text, "\n### %s\n\n%s.\n\n```\n%s\n```\n", c.CommandPath(), c.Short, c.UseLine())
		if c.Long != "" {
			fmt.Fprintf(&text, "\n%s\n", c.Long)
		}
		if flags := describe(c.LocalNonPersistentFlags()); flags != "" {
			fmt.Fprintf(&text, "\n| flag | |\n|---|---|\n%s", flags)
		}
		fmt.Fprintf(&text, "\n```sh\n%s\n```\n", unindent(c.Example))
	})
	fmt.Fprintf(&text, "\n### Flags of every command\n\n| flag | |\n|---|---|\n%s", describe(root.PersistentFlags()))
	return text.String()
}

func describe(flags *pflag.FlagSet) string {
	var text strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&text, "| %s | %s |\n", name, usage)
	})
	return text.String()
}

func unindent(example string) string {
	lines := strings.Split(example, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
