//go:build integration

package network

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/ambipod/ambipod/pkg/network/netns"
)

// fakePlugin writes a plugin that logs its verb and then runs body; it returns
// the folder it is in.
func (n *node) fakePlugin(name, body string) string {
	n.t.Helper()
	dir := filepath.Join(n.dir, "bin")
	must(n.t, os.MkdirAll(dir, 0o755))
	script := fmt.Sprintf("#!/bin/sh\necho \"$CNI_COMMAND\" >>%s/verbs\n%s\n", n.dir, body)
	must(n.t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	return dir
}

// verbs lists what the fake plugins were asked since the last call.
func (n *node) verbs() string {
	n.t.Helper()
	path := filepath.Join(n.dir, "verbs")
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return ""
	}
	must(n.t, err)
	must(n.t, os.Remove(path))
	return strings.Join(strings.Fields(string(b)), " ")
}

// useFake makes the network a bridge that is followed by a fake plugin.
func (n *node) useFake(body string) {
	n.t.Helper()
	bin := n.fakePlugin("fake", body)
	n.manager = n.newManager(Options{BinDirs: []string{bin, pluginDir()}})
	n.writeConf(n.bridge("10.77.0.0/24"), map[string]any{"type": "fake"})
}

const (
	prevResult = `sed -e 's/,"runtimeConfig":.*//' -e 's/,"type":"[a-z]*"}$//' -e 's/.*"prevResult"://'`
	passOn     = `[ "$CNI_COMMAND" = ADD ] && ` + prevResult + `; exit 0`
	failWith   = `echo '{"cniVersion":"1.0.0","code":11,"msg":"out of addresses","details":"in pool blue"}'; exit 1`
)

func TestFailingAdd(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"with a CNI error":  {`[ "$CNI_COMMAND" = ADD ] || exit 0; ` + failWith, "out of addresses; in pool blue"},
		"with a stack dump": {`[ "$CNI_COMMAND" = ADD ] || exit 0; echo 'panic: oh' >&2; exit 2`, "CNI plugin fake: exit status 2: panic: oh"},
		"without a word":    {`[ "$CNI_COMMAND" = ADD ] || exit 0; exit 3`, "CNI plugin fake: exit status 3, without saying why"},
		"with nonsense":     {`[ "$CNI_COMMAND" = ADD ] || exit 0; echo nonsense`, "testnet"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.useFake(c.body)
			pod := testPod(t)
			_, err := n.setup(pod)
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), pod.SandboxID) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := n.verbs(); got != "ADD DEL" {
				t.Errorf("verbs: %s", got)
			}
			n.assertClean()
		})
	}
}

// TestFailingAddAndDel: what plugins do not undo at once is undone later, by this
// process or the next.
func TestFailingAddAndDel(t *testing.T) {
	for name, restarted := range map[string]bool{"same process": false, "restarted": true} {
		t.Run(name, func(t *testing.T) { failingAddAndDel(t, restarted) })
	}
}

func failingAddAndDel(t *testing.T, restarted bool) {
	t.Helper()
	n := newNode(t)
	n.useFake(failWith)
	pod := testPod(t)
	_, err := n.setup(pod)
	if err == nil || !strings.Contains(err.Error(), "attach sandbox") || !strings.Contains(err.Error(), "detach sandbox") {
		t.Errorf("got %v, want both failures", err)
	}
	if err := n.teardown(n.manager, pod); !errdefs.IsUnavailable(err) {
		t.Errorf("teardown while DEL fails: %v", err)
	}
	n.fakePlugin("fake", passOn)
	if restarted {
		n.manager = n.newManager(Options{BinDirs: []string{filepath.Join(n.dir, "bin"), pluginDir()}})
	}
	must(t, n.onHost(func() error { return n.manager.Sweep(t.Context(), nil) }))
	n.assertClean()
}

// TestHangingPlugin: a plugin that hangs, and whose child holds its output open,
// is ended with the caller's context.
func TestHangingPlugin(t *testing.T) {
	n := newNode(t)
	n.useFake(`[ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & sleep 1000`)
	pod := testPod(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- n.onHost(func() error {
			_, err := n.manager.Setup(ctx, pod)
			return err
		})
	}()
	verbs := filepath.Join(n.dir, "verbs")
	eventually(t, func() bool { _, err := os.Stat(verbs); return err == nil }, func() string { return "the plugin was not run" })
	cancel()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("got %v", err)
		}
	case <-time.After(testTimeout):
		t.Fatal("Setup hangs with its plugin")
	}
	n.assertClean()
	if got := n.verbs(); got != "ADD DEL" {
		t.Errorf("verbs: %s", got)
	}
}

func TestHangingDel(t *testing.T) {
	n := newNode(t)
	n.useFake(passOn)
	pod := testPod(t)
	n.mustSetup(pod)
	n.fakePlugin("fake", `sleep 1000`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := n.onHost(func() error { return n.manager.Teardown(ctx, pod) })
	if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("got %v", err)
	}
	n.fakePlugin("fake", passOn)
	must(t, n.teardown(n.manager, pod))
	n.assertClean()
}

// TestLeftovers: what a killed attempt left for the same sandbox does not block
// the next one and is not left over by it.
func TestLeftovers(t *testing.T) {
	for name, leave := range map[string]func(*node, Pod){
		"a whole network":   func(n *node, p Pod) { n.mustSetup(p) },
		"an empty file":     func(n *node, p Pod) { must(n.t, os.WriteFile(n.manager.netnsPath(p.SandboxID), nil, 0o600)) },
		"a namespace alone": func(n *node, p Pod) { must(n.t, netns.Create(n.manager.netnsPath(p.SandboxID))) },
		"a record alone": func(n *node, p Pod) {
			list, err := n.manager.loadConfig()
			must(n.t, err)
			a, err := newAttachment(p, n.manager.netnsPath(p.SandboxID), list)
			must(n.t, err)
			must(n.t, n.manager.attachments.save(a))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.writeConf(n.bridge("10.77.0.0/24"))
			pod := testPod(t)
			leave(n, pod)
			n.manager = n.newManager(Options{})
			r := n.mustSetup(pod)
			if len(n.podLinks()) != 1 {
				t.Errorf("links of pods: %v", n.podLinks())
			}
			must(t, n.manager.Connect(t.Context(), pod.SandboxID, r))
			must(t, n.teardown(n.manager, pod))
			n.assertClean()
		})
	}
}

func TestUnreadableRecord(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	broken, good := testPod(t), testPod(t)
	n.mustSetup(broken)
	n.mustSetup(good)
	record := n.manager.attachments.path(broken.SandboxID)
	saved, err := os.ReadFile(record)
	must(t, err)
	must(t, os.WriteFile(record, []byte("{"), 0o600))
	n.manager = n.newManager(Options{})
	// It fails closed: the broken one is kept and reported, the other removed.
	err = n.onHost(func() error { return n.manager.Sweep(t.Context(), nil) })
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), record) {
		t.Errorf("got %v", err)
	}
	if len(n.podLinks()) != 1 {
		t.Errorf("links of pods: %v", n.podLinks())
	}
	must(t, os.WriteFile(record, saved, 0o600))
	must(t, n.onHost(func() error { return n.manager.Sweep(t.Context(), nil) }))
	n.assertClean()
}

func TestSweep(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	kept, dead, fresh := testPod(t), testPod(t), testPod(t)
	n.mustSetup(kept)
	n.mustSetup(dead)
	must(t, netns.Create(n.manager.netnsPath("abandoned")))
	n.manager = n.newManager(Options{})
	n.mustSetup(fresh) // not yet known to whoever says what is live
	must(t, n.onHost(func() error { return n.manager.Sweep(t.Context(), map[string]bool{kept.SandboxID: true}) }))
	for id, want := range map[string]bool{kept.SandboxID: true, dead.SandboxID: false, fresh.SandboxID: true, "abandoned": false} {
		if got := netns.Exists(n.manager.netnsPath(id)); got != want {
			t.Errorf("namespace %s exists: %v, want %v", id, got, want)
		}
	}
	must(t, n.teardown(n.manager, kept))
	must(t, n.teardown(n.manager, fresh))
	n.assertClean()
}

// TestGarbageCollection: the verb GC would free the addresses of every other
// runtime on the network, so it is used only when that is wanted. Plugins are told
// what they must keep: all that there is a record of.
func TestGarbageCollection(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		n := newNode(t)
		stdin := filepath.Join(n.dir, "stdin")
		bin := n.fakePlugin("fake", `[ "$CNI_COMMAND" = DEL ] || cat >`+stdin)
		n.manager = n.newManager(Options{BinDirs: []string{bin}, Exclusive: exclusive})
		must(t, os.WriteFile(filepath.Join(n.conf, "1.conflist"),
			[]byte(`{"cniVersion":"1.1.0","name":"testnet","plugins":[{"type":"fake"}]}`), 0o600))
		list, err := n.manager.loadConfig()
		must(t, err)
		kept, dead := testPod(t), testPod(t)
		for _, pod := range []Pod{kept, dead} {
			a, err := newAttachment(pod, n.manager.netnsPath(pod.SandboxID), list)
			must(t, err)
			must(t, n.manager.attachments.save(a))
		}
		must(t, n.onHost(func() error { return n.manager.Sweep(t.Context(), map[string]bool{kept.SandboxID: true}) }))
		if got, want := n.verbs(), map[bool]string{false: "DEL", true: "DEL GC"}[exclusive]; got != want {
			t.Errorf("exclusive %v: verbs %q, want %q", exclusive, got, want)
		}
		if !exclusive {
			continue
		}
		var told struct {
			Keep []map[string]string `json:"cni.dev/valid-attachments"`
		}
		config, err := os.ReadFile(stdin)
		must(t, err)
		must(t, json.Unmarshal(config, &told))
		if diff := cmp.Diff([]map[string]string{{"containerID": kept.SandboxID, "ifname": "eth0"}}, told.Keep); diff != "" {
			t.Errorf("what plugins are told to keep (-want +got):\n%s\n%s", diff, config)
		}
	}
}

// TestGarbageWaitsForPlugins: while plugins give a sandbox its address they are not asked
// to free what they do not know to be anybody's.
func TestGarbageWaitsForPlugins(t *testing.T) {
	n := newNode(t)
	entered, leave := filepath.Join(n.dir, "entered"), filepath.Join(n.dir, "leave")
	bin := n.fakePlugin("fake", `[ "$CNI_COMMAND" = ADD ] || exit 0
: >`+entered+`; while [ ! -e `+leave+` ]; do sleep 0.05; done
`+failWith)
	n.manager = n.newManager(Options{BinDirs: []string{bin}, Exclusive: true})
	must(t, os.WriteFile(filepath.Join(n.conf, "1.conflist"),
		[]byte(`{"cniVersion":"1.1.0","name":"testnet","plugins":[{"type":"fake"}]}`), 0o600))
	sweep := func() string {
		t.Helper()
		must(t, n.onHost(func() error { return n.manager.Sweep(t.Context(), nil) }))
		return n.verbs()
	}
	added := make(chan error, 1)
	go func() {
		_, err := n.setup(testPod(t))
		added <- err
	}()
	eventually(t, func() bool {
		_, err := os.Stat(entered)
		return err == nil
	}, func() string { return "ADD does not run" })
	if got := sweep(); got != "ADD" {
		t.Errorf("during ADD plugins were asked for %q", got)
	}
	must(t, os.WriteFile(leave, nil, 0o600))
	if err := <-added; err == nil || n.verbs() != "DEL" {
		t.Errorf("ADD that fails is not undone: %v", err)
	}
	if got := sweep(); got != "GC" {
		t.Errorf("after ADD plugins were asked for %q, want GC", got)
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t)
	write := func(name, content string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(n.conf, name), []byte(content), 0o600))
	}
	expect := func(class func(error) bool, want string) {
		t.Helper()
		err := n.manager.Status(t.Context())
		if err == nil || !class(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	expect(errdefs.IsUnavailable, "no CNI network configuration in "+n.conf)
	if _, err := n.setup(testPod(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("setup without configuration: %v", err)
	}
	write("90-z.conflist", `{"cniVersion":"1.0.0","name":"z","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`)
	must(t, n.manager.Status(t.Context()))
	write("80-y.conflist", `{"cniVersion":"1.0.0","name":"y","plugins":[{"type":"bridge"},{"type":"no-such-plugin"}]}`)
	expect(errdefs.IsUnavailable, `CNI plugin "no-such-plugin" of network "y" is not in `+pluginDir())
	write("70-x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","ipam":{"type":"no-such-ipam"}}]}`)
	expect(errdefs.IsUnavailable, `CNI plugin "no-such-ipam"`)
	write("60-w.conflist", `{"cniVersion":"1.0.0","name":"w","plugins":[]}`)
	expect(errdefs.IsFailedPrecondition, "60-w.conflist is not usable")
	write("50-v.conf", `{"cniVersion":"1.0.0","name":"v"}`)
	expect(errdefs.IsFailedPrecondition, "50-v.conf is not usable")
	write("40-u.conf", `{`)
	expect(errdefs.IsFailedPrecondition, "40-u.conf is not usable")
	write("30-t.conf", `{"cniVersion":"1.0.0","name":"t","type":"bridge","ipam":{"type":"host-local"}}`)
	must(t, n.manager.Status(t.Context()))
	bin := n.fakePlugin("fake", `[ "$CNI_COMMAND" = STATUS ] && echo '{"cniVersion":"1.1.0","code":50,"msg":"the plugin is starting"}' && exit 1`)
	n.manager = n.newManager(Options{BinDirs: []string{bin}})
	write("20-s.conflist", `{"cniVersion":"1.1.0","name":"s","plugins":[{"type":"fake"}]}`)
	expect(errdefs.IsUnavailable, "the plugin is starting")
}

// TestWhatPluginsAreTold looks at arguments and capabilities as a plugin gets them.
func TestWhatPluginsAreTold(t *testing.T) {
	n := newNode(t)
	bin := n.fakePlugin("teller", fmt.Sprintf(`
if [ "$CNI_COMMAND" = ADD ]; then env >%[1]s/env; tee %[1]s/stdin | %[2]s; fi`, n.dir, prevResult))
	n.manager = n.newManager(Options{BinDirs: []string{bin, pluginDir()}})
	n.writeConf(n.bridge("10.77.0.0/24"), map[string]any{"type": "teller", "capabilities": map[string]bool{
		"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true,
	}})
	pod := testPod(t)
	pod.PortMappings = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "UDP", HostIP: "1.2.3.4"}, {ContainerPort: 81}}
	pod.IngressBandwidth = 1000
	pod.CgroupParent = "/kubepods/pod1"
	pod.Annotations = map[string]string{"a": "b"}
	n.mustSetup(pod)
	defer func() { must(t, n.teardown(n.manager, pod)) }()

	var told struct {
		RuntimeConfig map[string]any `json:"runtimeConfig"`
	}
	stdin, err := os.ReadFile(filepath.Join(n.dir, "stdin"))
	must(t, err)
	must(t, json.Unmarshal(stdin, &told))
	got, err := json.Marshal(told.RuntimeConfig)
	must(t, err)
	want := `{"bandwidth":{"ingressBurst":2147483647,"ingressRate":1000},"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"searches":["default.svc.cluster.local","cluster.local"],"servers":["10.96.0.10"]},` +
		`"io.kubernetes.cri.pod-annotations":{"a":"b"},` +
		`"portMappings":[{"containerPort":80,"hostIP":"1.2.3.4","hostPort":8080,"protocol":"udp"}]}`
	if string(got) != want {
		t.Errorf("runtimeConfig:\n got %s\nwant %s", got, want)
	}
	env, err := os.ReadFile(filepath.Join(n.dir, "env"))
	must(t, err)
	for _, line := range []string{
		"CNI_CONTAINERID=" + pod.SandboxID, "CNI_IFNAME=eth0", "CNI_NETNS=" + n.manager.netnsPath(pod.SandboxID),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=vm;K8S_POD_INFRA_CONTAINER_ID=" + pod.SandboxID + ";K8S_POD_UID=uid-1",
	} {
		if !strings.Contains(string(env), line+"\n") {
			t.Errorf("missing in the plugin's environment: %s", line)
		}
	}
}

// TestRounds creates and deletes pods, some at a time, and looks for leaks.
func TestRounds(t *testing.T) {
	n := newNode(t)
	n.writeConf(n.bridge("10.77.0.0/24"))
	round := func() {
		var pods sync.WaitGroup
		for range 4 {
			pod := testPod(t)
			pods.Go(func() {
				r, err := n.setup(pod)
				if err != nil {
					t.Error(err)
					return
				}
				if err := n.manager.Connect(t.Context(), pod.SandboxID, r); err != nil {
					t.Error(err)
				}
				if err := n.teardown(n.manager, pod); err != nil {
					t.Error(err)
				}
			})
		}
		pods.Wait()
	}
	round() // warm up
	before := count(t, "/proc/self/fd")
	for range 5 {
		round()
	}
	n.assertClean()
	if after := count(t, "/proc/self/fd"); after > before {
		t.Errorf("open files: %d, %d before", after, before)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), n.manager.netnsDir) {
		t.Error("mounts left behind")
	}
	if len(n.manager.locks.held)+len(n.manager.servers)+len(n.manager.started) != 0 {
		t.Errorf("memory left behind: %v %v %v", n.manager.locks.held, n.manager.servers, n.manager.started)
	}
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	return len(entries)
}

func TestBadSandboxID(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"", "../x", "a/b", ".hidden", "a b"} {
		pod := Pod{SandboxID: id}
		for name, err := range map[string]error{
			"setup":    second(n.setup(pod)),
			"teardown": n.teardown(n.manager, pod),
			"connect":  n.manager.Connect(t.Context(), id, &Result{}),
			"open":     second(n.manager.OpenTaps(t.Context(), id, &Result{})),
			"stats":    second(n.manager.Stats(id)),
			"check":    n.manager.Check(t.Context(), id),
		} {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s of %q: got %v", name, id, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestConnectWithoutNamespace is what recovery after a reboot meets.
func TestConnectWithoutNamespace(t *testing.T) {
	n := newNode(t)
	r := &Result{NetNS: filepath.Join(n.dir, "none"), Interfaces: []Interface{{Name: "eth0", MAC: "02:00:00:00:00:01"}}}
	if err := n.manager.Connect(t.Context(), "sandbox", r); !errdefs.IsNotFound(err) {
		t.Errorf("connect: %v", err)
	}
	if _, err := n.manager.OpenTaps(t.Context(), "sandbox", r); !errdefs.IsNotFound(err) {
		t.Errorf("open: %v", err)
	}
	if _, err := n.manager.Stats("sandbox"); !errdefs.IsNotFound(err) {
		t.Errorf("stats: %v", err)
	}
	if err := n.manager.Check(t.Context(), "sandbox"); !errdefs.IsNotFound(err) {
		t.Errorf("check: %v", err)
	}
}
