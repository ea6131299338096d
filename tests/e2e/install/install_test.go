//go:build e2e

package install

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/tests/cluster"
	"github.com/ambipod/ambipod/tests/e2e/fixture"
	"github.com/ambipod/ambipod/tests/node"
	"github.com/ambipod/ambipod/tests/process"
)

// TestInstallation is the life of an installation; its parts build on each other.
func TestInstallation(t *testing.T) {
	defer func() {
		if t.Failed() {
			for _, args := range [][]string{
				{"get", "pods", "-A"},
				{"describe", "pods", "-A"},
				{"logs", "-n", "ambipod", "ds/node", "--all-containers", "--prefix", "--tail=40"},
			} {
				out, _ := said(t, args...)
				t.Log(out)
			}
		}
	}()
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"apply", testApply},
		{"VM pod", testVMPod},
		{"access", testAccess},
		{"objects that are not mounted", testObjects},
		{"policies", testPolicies},
		{"rights", testRights},
		{"incapable node", testIncapableNode},
		{"roll", testRoll},
		{"second node", testSecondNode},
		{"roll over nodes", testRollOverNodes},
		{"bad roll", testBadRoll},
		{"drain", testDrain},
		{"node without Ambipod", testNodeWithout},
		{"uninstall beside VMs", testForce},
		{"uninstall", testUninstall},
	} {
		if !t.Run(part.name, part.test) && part.name == "apply" {
			return
		}
	}
}

func testApply(t *testing.T) {
	kubectl(t, "label", "node", shared.Node().Name(), cluster.NodeChoice)
	kubectl(t, "apply", "-k", overlay)
	kubectl(t, "-n", "ambipod", "rollout", "status", "daemonset/node", patience)
	hasLabels(t, shared.Node(), capable)
	// The daemons are the last to be evicted, and no policy of the namespace cuts them off.
	got := kubectl(t, "-n", "ambipod", "get", "pods", "-o", "jsonpath={range .items[*]}{.spec.priority} {.spec.hostNetwork}{end}")
	if got != "1000000000 true" {
		t.Errorf("priority and network of the daemons are %q", got)
	}
	if got := kubectl(t, "-n", "ambipod", "get", "networkpolicies", "-o", "name"); got != "networkpolicy.networking.k8s.io/deny-all\n" {
		t.Errorf("policies of the namespace: %q", got)
	}
	if out := kubectl(t, "-n", "ambipod", "exec", "daemonset/node", "-c", "vmruntime", "--", "vmctl", "version"); !strings.Contains(out, "QEMU") {
		t.Errorf("vmctl in vmruntime's container says:\n%s", out)
	}
}

// labels are the values of vm.ambipod.io/capable, vm.ambipod.io/accel and extraRuntime.
type labels [3]string

// capable are the labels of a node that emulates VMs, incapable those of one that runs
// none.
var capable, incapable = labels{"true", "tcg", "virtlet"}, labels{}

// hasLabels waits until a node has these values of Ambipod's labels.
func hasLabels(t *testing.T, on *node.Node, want labels) {
	t.Helper()
	eventually(t, "node "+on.Name()+" has its labels", func(ctx context.Context) error {
		var n corev1.Node
		if err := shared.Get(ctx, "/api/v1/nodes/"+on.Name(), &n); err != nil {
			return err
		}
		have := labels{n.Labels["vm.ambipod.io/capable"], n.Labels["vm.ambipod.io/accel"], n.Labels["extraRuntime"]}
		if have != want {
			return fmt.Errorf("its labels are %q, want %q", have, want)
		}
		return nil
	})
}

// vmPod uses all that lies beside QEMU: a TPM, a folder of the node, a ConfigMap.
const vmPod = `
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {text: from the cluster}
---
apiVersion: v1
kind: Pod
metadata:
  name: vm
  annotations: {vm.ambipod.io/tpm: "2.0"}
spec:
  runtimeClassName: vm
  terminationGracePeriodSeconds: 5
  containers:
  - name: machine
    image: vm.ambipod.io/tiny
    stdin: true
    tty: true
    resources: {limits: {cpu: "1", memory: 128Mi}}
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 2}
    volumeMounts:
    - {name: folder, mountPath: /folder}
    - {name: greeting, mountPath: /greeting}
  volumes:
  - {name: folder, hostPath: {path: /srv/folder}}
  - {name: greeting, configMap: {name: greeting}}
`

// folder is the node's /srv/folder.
func folder() string { return filepath.Join(shared.Node().RootDir(), "srv", "folder") }

func testVMPod(t *testing.T) {
	if err := os.MkdirAll(folder(), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := apply(t, vmPod); err != nil {
		t.Fatal(out)
	}
	kubectl(t, "wait", "--for=condition=Ready", "pod/vm", "--timeout="+testTime.String())
	logHas(t, "login:")
	if out := inGuest(t, "vm", "cat /greeting/text; echo; echo guest >/folder/from; sync; ls /dev/tpm0"); out != "from the cluster\n/dev/tpm0\n" {
		t.Errorf("the guest says %q", out)
	}
	if got, err := os.ReadFile(filepath.Join(folder(), "from")); err != nil || string(got) != "guest\n" {
		t.Errorf("the node's folder has %q (%v)", got, err)
	}
	var pod corev1.Pod
	if err := shared.Get(deadline(t), "/api/v1/namespaces/default/pods/vm", &pod); err != nil {
		t.Fatal(err)
	}
	if got := pod.Spec.Overhead.Memory().String(); got != "192Mi" {
		t.Errorf("the pod's overhead is %s", got)
	}
	var names []string
	for _, p := range members(t, "vm") {
		names = append(names, p.name)
	}
	slices.Sort(names)
	if want := []string{"qemu-system-x86", "swtpm", "virtiofsd", "virtiofsd"}; !slices.Equal(names, want) {
		t.Errorf("the pod's control group has %q, want %q", names, want)
	}
}

// inGuest runs a shell command in a VM once its agent answers.
func inGuest(t *testing.T, pod, command string) (out string) {
	t.Helper()
	eventually(t, "the guest of "+pod+" answers", func(ctx context.Context) (err error) {
		out, err = shared.Kubectl(ctx, "exec", pod, "--", "sh", "-c", command)
		return err
	})
	return out
}

// logHas waits until the VM's log has the text.
func logHas(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the log has "+text, func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "logs", "vm")
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("the log ends %q", out[max(0, len(out)-200):])
		}
		return err
	})
}

// member is a process in the control group of the VM's pod.
type member struct {
	name string
	process.Process
}

// members lists what runs for a VM's pod, by its control group.
func members(t *testing.T, pod string) []member {
	t.Helper()
	uid := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var found []member
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(text, []byte("pod"+uid+"/ambipod-")) {
			continue // it ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := process.Find(pid)
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		if err != nil {
			continue
		}
		found = append(found, member{strings.TrimSpace(string(name)), p})
	}
	return found
}

// testObjects: what a pod does not mount is read with the overlay alone.
func testObjects(t *testing.T) {
	const pod = `
apiVersion: v1
kind: Pod
metadata:
  name: unmounted
  annotations: {vm.ambipod.io/user-data-source: configmap/greeting}
spec:
  runtimeClassName: vm
  containers: [{name: machine, image: vm.ambipod.io/tiny}]
`
	if out, err := apply(t, pod); err != nil {
		t.Fatal(out)
	}
	eventually(t, "an event says that the object is not mounted", func(ctx context.Context) error {
		return fixture.HasEvent(ctx, shared, "default", "unmounted", "configmap default/greeting is not mounted in the pod")
	})
	// The pod's next try is after the roll that gives vmruntime the right to read.
}

// testPolicies: whoever forgets the RuntimeClass is told at once.
func testPolicies(t *testing.T) {
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: forgetful}
spec:
  %s
  containers: [{name: machine, image: %s}]
`
	for name, c := range map[string]struct {
		spec, image string
		warned      bool
	}{
		"no class":     {"restartPolicy: Always", "vm.ambipod.io/tiny", true},
		"alias":        {"restartPolicy: Always", "virtlet.cloud/tiny", true},
		"class":        {"runtimeClassName: vm", "vm.ambipod.io/tiny", false},
		"nodeSelector": {"nodeSelector: {extraRuntime: virtlet}", "virtlet.cloud/tiny", false},
		"container":    {"restartPolicy: Always", "busybox", false},
	} {
		t.Run(name, func(t *testing.T) {
			file := fixture.Manifest(t, fmt.Sprintf(pod, c.spec, c.image))
			// A dry run goes through admission and makes nothing.
			out, err := said(t, "apply", "--dry-run=server", "-f", file)
			warned := strings.Contains(out, `Warning:`) && strings.Contains(out, `set runtimeClassName to "vm"`)
			if err != nil || warned != c.warned {
				t.Errorf("warned: %t, want %t (%v):\n%s", warned, c.warned, err, out)
			}
		})
	}
}

// testRights: the daemon's token is good for three labels of its own node.
func testRights(t *testing.T) {
	const other = "apiVersion: v1\nkind: Node\nmetadata: {name: other}\n"
	if out, err := apply(t, other); err != nil {
		t.Fatal(out)
	}
	defer kubectl(t, "delete", "node", "other")
	own := shared.Node().Name()
	pod := kubectl(t, "-n", "ambipod", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
	token := kubectl(t, "-n", "ambipod", "exec", pod, "-c", "node-labels", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	// A kubeconfig of its own: the admin's certificate would come before the token.
	file := filepath.Join(t.TempDir(), "kubeconfig")
	server := kubectl(t, "config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.server}")
	config := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
  clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}],
  users: [{name: u, user: {token: %q}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, server, token)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args    []string
		refused string // "" if it is allowed
	}{
		{[]string{"label", "--overwrite", "node", own, "vm.ambipod.io/accel=kvm"}, ""},
		{[]string{"label", "node", own, "team=red"}, "may change its own labels, no others"},
		{[]string{"label", "node", own, "kubernetes.io/os-"}, "may change its own labels, no others"},
		{[]string{"annotate", "node", own, "a=b"}, "labels and nothing else"},
		{[]string{"patch", "node", own, "-p", `{"spec":{"unschedulable":true}}`}, "labels and nothing else"},
		{[]string{"label", "node", "other", "vm.ambipod.io/capable=true"}, "the node that it runs on, no other"},
		{[]string{"get", "secrets", "-A"}, "forbidden"},
		{[]string{"get", "configmaps", "-n", "ambipod"}, "forbidden"},
		{[]string{"get", "pods", "-A"}, "forbidden"},
		{[]string{"delete", "node", "other"}, "forbidden"},
	} {
		out, err := said(t, append([]string{"--kubeconfig", file}, c.args...)...)
		if refused := err != nil; refused != (c.refused != "") || !strings.Contains(out, c.refused) {
			t.Errorf("kubectl %s: %v, want %q:\n%s", strings.Join(c.args, " "), err, c.refused, out)
		}
	}
	hasLabels(t, shared.Node(), capable) // made true again
}

// vmruntime is the daemon in the DaemonSet's container.
func vmruntime(t *testing.T) process.Process {
	t.Helper()
	found, err := shared.Node().ProcessesNaming("vmruntime --logtostderr")
	if err != nil || len(found) != 1 {
		t.Fatalf("%d processes are vmruntime (%v)", len(found), err)
	}
	return found[0]
}

// homeless are VM pods that go to nodes with Ambipod in three ways.
const homeless = `
apiVersion: v1
kind: Pod
metadata: {name: by-class, labels: {is: homeless}}
spec:
  runtimeClassName: vm
  containers: [{name: machine, image: vm.ambipod.io/tiny, resources: {limits: {memory: 128Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: by-selector, labels: {is: homeless}, annotations: {kubernetes.io/target-runtime: virtlet.cloud}}
spec:
  nodeSelector: {extraRuntime: virtlet}
  containers: [{name: machine, image: virtlet.cloud/tiny, resources: {limits: {memory: 128Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: by-affinity, labels: {is: homeless}, annotations: {vm.ambipod.io/target-runtime: vm}}
spec:
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: vm.ambipod.io/accel, operator: In, values: [kvm, tcg]}]}]
  containers: [{name: machine, image: vm.ambipod.io/tiny, resources: {limits: {memory: 128Mi}}}]
`

// testIncapableNode: a node whose vmruntime hangs loses its labels, and the scheduler
// says so of pods that need them. They run when the labels are back.
func testIncapableNode(t *testing.T) {
	p := vmruntime(t)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceValue(func() error { return p.Signal(syscall.SIGCONT) })
	defer func() {
		if err := goOn(); err != nil {
			t.Error(err)
		}
	}()
	hasLabels(t, shared.Node(), incapable)
	if out, err := apply(t, homeless); err != nil {
		t.Fatal(out)
	}
	defer kubectl(t, "delete", "pods", "-l", "is=homeless", "--now")
	for _, pod := range []string{"by-class", "by-selector", "by-affinity"} {
		eventually(t, "an event says why "+pod+" has no node", func(ctx context.Context) error {
			return fixture.HasEvent(ctx, shared, "default", pod, "didn't match Pod's node affinity/selector")
		})
	}
	if err := goOn(); err != nil {
		t.Fatal(err)
	}
	hasLabels(t, shared.Node(), capable)
	kubectl(t, "wait", "--for=jsonpath={.status.phase}=Running", "pods", "-l", "is=homeless", "--timeout="+testTime.String())
}

// become applies an overlay of deploy/ in the place of what is installed.
func become(t *testing.T, folder string) {
	t.Helper()
	file := filepath.Join(overlay, "kustomization.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^resources: .*$`).ReplaceAll(text, []byte("resources: [../"+folder+"]"))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-k", overlay)
	kubectl(t, "-n", "ambipod", "rollout", "status", "daemonset/node", patience)
}

// life is what tells one run of a VM from another.
type life struct {
	boot     string // the guest's
	restarts string // as kubelet counts them
	members  []member
}

// lives are those of VMs, by the names of their pods.
func lives(t *testing.T, pods ...string) map[string]life {
	t.Helper()
	found := map[string]life{}
	for _, pod := range pods {
		found[pod] = life{
			boot:     inGuest(t, pod, "cat /proc/sys/kernel/random/boot_id"),
			restarts: kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"),
			members:  members(t, pod),
		}
	}
	return found
}

// liveOn fails unless VMs are in the lives that they were in, the first of their pods.
func liveOn(t *testing.T, before map[string]life) {
	t.Helper()
	if len(before) == 0 {
		t.Error("there was no VM to go on")
	}
	after := lives(t, slices.Collect(maps.Keys(before))...)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the VMs were %v and are %v", before, after)
	}
	for pod, now := range after {
		if now.restarts != "0" || len(now.members) == 0 {
			t.Errorf("%s was restarted %s times and has the processes %v", pod, now.restarts, now.members)
		}
	}
}

// testRoll: new daemons find the VM as the old ones left it.
func testRoll(t *testing.T) {
	before, daemon := lives(t, "vm"), vmruntime(t)
	become(t, "overlays/monitoring")
	if daemon.Alive() {
		t.Error("the former vmruntime is still there")
	}
	eventually(t, "metrics have the running VM", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, "http://"+shared.Node().IP().String()+":9468/metrics")
		if err == nil && !strings.Contains(string(page), `ambipod_vms{state="running"} 1`) {
			err = fmt.Errorf("they are %.2000q", page)
		}
		return err
	})
	liveOn(t, before)
	// Folder, console and network go on as well.
	if out := inGuest(t, "vm", "cat /folder/from; echo after the roll >/dev/console; wget -q -O /dev/null http://localhost && echo ok"); out != "guest\nok\n" {
		t.Errorf("the guest says %q", out)
	}
	logHas(t, "after the roll")
	hasLabels(t, shared.Node(), capable)
}

// uninstall runs deploy/uninstall as somebody who has kubectl would.
func uninstall(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd, err := shared.Command(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	script := exec.CommandContext(deadline(t), filepath.Join(filepath.Dir(overlay), "uninstall"), args...)
	script.Env = append(cmd.Env, "PATH="+filepath.Dir(cmd.Path)+":"+os.Getenv("PATH"))
	out, err := script.CombinedOutput()
	return string(out), err
}

// testForce: nothing is removed under VM pods, unless told. The VMs then go on
// without daemons, and new ones take them over.
func testForce(t *testing.T) {
	vms := append(fronts(t), "vm")
	if out, err := uninstall(t); err == nil || !strings.Contains(out, "3 VM pods exist (default/front-") {
		t.Fatalf("uninstall beside VMs: %v:\n%s", err, out)
	}
	kubectl(t, "-n", "ambipod", "rollout", "status", "daemonset/node", "--timeout=1s")
	before := lives(t, vms...)
	if out, err := uninstall(t, "--force"); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	noObjects(t)
	for _, n := range nodes() {
		hasLabels(t, n, incapable)
	}
	for _, vm := range vms {
		if after := members(t, vm); !slices.Equal(before[vm].members, after) {
			t.Errorf("the processes of %s were %v and are %v without daemons", vm, before[vm].members, after)
		}
		answers(t, vm)
	}

	become(t, "base")
	for _, n := range nodes() {
		hasLabels(t, n, capable)
	}
	liveOn(t, before)
	kubectl(t, "delete", "--wait", "-f", pdb())
	kubectl(t, "delete", "pod", "vm")
	kubectl(t, "wait", "--for=delete", "pod", "-l", "app=front", "--timeout="+testTime.String())
	for name, vm := range before {
		for _, p := range vm.members {
			if p.Alive() {
				t.Errorf("%s (%d) outlived its pod %s", p.name, p.PID, name)
			}
		}
	}
}

// answers waits until the machine gets a VM's page.
func answers(t *testing.T, vm string) {
	t.Helper()
	url := "http://" + kubectl(t, "get", "pod", vm, "-o", "jsonpath={.status.podIP}") + "/"
	eventually(t, vm+" answers", func(ctx context.Context) error {
		page, err := node.Fetch(ctx, url)
		if err == nil && !strings.Contains(string(page), "Hello from "+vm+",") {
			err = fmt.Errorf("its page is %q", page)
		}
		return err
	})
}

// testUninstall: nothing stays.
func testUninstall(t *testing.T) {
	// A pod that waits for a node counts too, and --force goes on all the same.
	if out, err := apply(t, strings.Replace(vmPod, "runtimeClassName: vm", "runtimeClassName: vm\n  nodeSelector: {some: where}", 1)); err != nil {
		t.Fatal(out)
	}
	if out, err := uninstall(t); err == nil {
		t.Fatalf("uninstall beside a waiting VM pod:\n%s", out)
	}
	if out, err := uninstall(t, "--force"); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	nothingLeft(t)
	if out, err := uninstall(t, "--force"); err != nil {
		t.Errorf("a second time: %v:\n%s", err, out)
	}
}

// noObjects looks for Ambipod's objects in the cluster.
func noObjects(t *testing.T) {
	t.Helper()
	kinds := "daemonsets,runtimeclasses,clusterroles,clusterrolebindings,priorityclasses,validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces"
	for line := range strings.Lines(kubectl(t, "get", kinds, "-A", "-o", "name")) {
		if strings.Contains(line, "ambipod") || strings.Contains(line, "runtimeclass") {
			t.Errorf("left in the cluster: %s", line)
		}
	}
}

func nothingLeft(t *testing.T) {
	t.Helper()
	noObjects(t)
	for _, n := range nodes() {
		hasLabels(t, n, incapable)
		for _, text := range []string{"virtlogd", "libvirtd", "vmruntime", "qemu-system", layout.DefaultRun} {
			found, err := n.ProcessesNaming(text)
			if err != nil || len(found) > 0 {
				t.Errorf("processes of %s on %s: %v (%v)", text, n.Name(), found, err)
			}
		}
		for _, pattern := range []string{"/sys/fs/cgroup" + n.Cgroup() + "/ambipod", "/sys/fs/cgroup/*" + n.Cgroup() + "/ambipod", n.VMRunDir() + "/netns/*"} {
			if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
				t.Errorf("left on %s: %v (%v)", n.Name(), found, err)
			}
		}
	}
}
