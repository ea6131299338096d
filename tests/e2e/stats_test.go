//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/ambipod/ambipod/tests/node"
)

// served is how much a busy VM sends, in bytes.
const served = 8 << 20

const busyGuest = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    dd if=/dev/zero of=/var/www/big bs=1024k count=8
    while :; do :; done &
    echo guest is "busy"
`

// TestStatisticsAreTrue compares what kubelet says about a busy VM pod and a busy
// container pod with the kernel's own counters, in both modes of kubelet.
func TestStatisticsAreTrue(t *testing.T) {
	t.Run("kubelet asks cAdvisor for pods", func(t *testing.T) {
		n := kubeletNode(t)
		truthfulPods(t, n)
		endBusyPods(t, n)
		nothingLeft(t, n)
	})
	t.Run("kubelet asks the CRI alone", func(t *testing.T) {
		n := tunedNode(t)
		vm := truthfulPods(t, n)
		criNetwork(t, n, vm)
		criDisk(t, n, vm)
		criMetrics(t, n, vm)
		endBusyPods(t, n)
	})
}

func endBusyPods(t *testing.T, n *node.Node) {
	t.Helper()
	must(t, n.Delete("busy-vm"))
	must(t, n.Delete("busy-container"))
}

// truthfulPods runs both pods and compares; it returns the VM's.
func truthfulPods(t *testing.T, n *node.Node) *corev1.Pod {
	t.Helper()
	container := examplePod(t, "container-pod.yaml", "busy-container", node.ContainerImage)
	container.Spec.Containers[0].Command = []string{"/bin/sh", "-c", "dd if=/dev/zero of=/dev/shm/all bs=1024k count=16; while :; do :; done"}
	apply(t, n, container)
	applyWith(t, n, light(examplePod(t, "vm-pod.yaml", "busy-vm", node.VMImage)), busyGuest)
	pods := []*corev1.Pod{waitRunning(t, n, "busy-container"), waitRunning(t, n, "busy-vm")}
	if _, err := node.WaitPodLog(deadline(t), n.PodLog(pods[1], "machine"), "guest is busy"); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		for _, level := range []string{"pod", "container"} {
			truth := watchGroup(t, groupOf(t, n, pod, level))
			t.Run(pod.Name+" "+level+" in summary", func(t *testing.T) { compareSummary(t, n, pod, level, truth) })
			t.Run(pod.Name+" "+level+" in resource metrics", func(t *testing.T) { compareResource(t, n, pod, level, truth) })
		}
	}
	return pods[1]
}

// group is a control group: its folders by what they count.
type group struct{ cpu, memory string }

// groupOf finds a pod's control group or its container's, by the kernel's own folders.
func groupOf(t *testing.T, n *node.Node, pod *corev1.Pod, level string) group {
	t.Helper()
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	want := "pod" + pod.Annotations["kubernetes.io/config.hash"]
	if level == "container" {
		want = id[strings.LastIndexByte(id, '.')+1:]
	}
	find := func(hierarchies ...string) string {
		for _, hierarchy := range hierarchies {
			var found string
			_ = filepath.WalkDir(filepath.Join(hierarchy, n.Cgroup()), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && strings.HasSuffix(d.Name(), want) {
					found = path
				}
				return nil
			})
			if found != "" {
				return found
			}
		}
		t.Fatalf("%s %s has no control group *%s", pod.Name, level, want)
		return ""
	}
	return group{find("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"), find("/sys/fs/cgroup/memory", "/sys/fs/cgroup")}
}

// moment is what the kernel counts in a control group.
type moment struct {
	at              time.Time
	cpu             float64 // seconds
	usage, inactive float64 // bytes
}

func (g group) read() (m moment, err error) {
	number := func(file, key string) float64 {
		data, readErr := os.ReadFile(file)
		if readErr != nil {
			err = readErr
			return 0
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(line, key); ok {
				got, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
				return got
			}
		}
		err = fmt.Errorf("%s has no %q", file, key)
		return 0
	}
	m.at = time.Now()
	if _, statErr := os.Stat(filepath.Join(g.cpu, "cpuacct.usage")); statErr == nil {
		m.cpu = number(filepath.Join(g.cpu, "cpuacct.usage"), "") / 1e9
		m.usage = number(filepath.Join(g.memory, "memory.usage_in_bytes"), "")
		m.inactive = number(filepath.Join(g.memory, "memory.stat"), "total_inactive_file ")
		return m, err
	}
	m.cpu = number(filepath.Join(g.cpu, "cpu.stat"), "usage_usec ") / 1e6
	m.usage = number(filepath.Join(g.memory, "memory.current"), "")
	m.inactive = number(filepath.Join(g.memory, "memory.stat"), "inactive_file ")
	return m, err
}

// history is what a control group counted, as long as the test lasts.
type history struct {
	mu      sync.Mutex // guards moments
	moments []moment
}

func watchGroup(t *testing.T, g group) *history {
	t.Helper()
	h := &history{}
	first, err := g.read()
	must(t, err)
	h.moments = []moment{first}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if m, err := g.read(); err == nil {
					h.mu.Lock()
					h.moments = append(h.moments, m)
					h.mu.Unlock()
				}
			}
		}
	}()
	return h
}

// during is what the kernel counted when a span of time began and when it ended. It
// waits for a span that has not ended; known is false for one that began unwatched.
func (h *history) during(t *testing.T, from, to time.Time) (before, after moment, known bool) {
	t.Helper()
	eventually(t, "the time of the claim is over", func(context.Context) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if last := h.moments[len(h.moments)-1]; last.at.Before(to) {
			return fmt.Errorf("the last moment watched is %s, want %s", last.at, to)
		}
		before, known = h.moments[0], !h.moments[0].at.After(from)
		for _, m := range h.moments {
			if !m.at.After(from) {
				before = m
			}
			if after = m; !m.at.Before(to) {
				break
			}
		}
		return nil
	})
	return before, after, known
}

const tolerance = 0.05

// near reports what is wrong with a value that must lie between two, and 5 %.
func near(what string, got, a, b float64) error {
	low, high := min(a, b)*(1-tolerance), max(a, b)*(1+tolerance)
	if got < low || got > high {
		return fmt.Errorf("%s is %.6g, the kernel counts %.6g to %.6g", what, got, a, b)
	}
	return nil
}

// claim is what kubelet says.
type claim struct {
	cpuAt, memoryAt time.Time
	vague           time.Duration // the times are cut off to that
	cpu, workingSet float64
}

// check compares with what the kernel counted then. A claim about a time that was not
// watched is told apart: a later one will be.
func (c claim) check(t *testing.T, truth *history) error {
	t.Helper()
	before, after, known := truth.during(t, c.cpuAt, c.cpuAt.Add(c.vague))
	first, last, alsoKnown := truth.during(t, c.memoryAt, c.memoryAt.Add(c.vague))
	if !known || !alsoKnown {
		return fmt.Errorf("the claim is of %s and %s, when nobody watched", c.cpuAt, c.memoryAt)
	}
	if err := near("CPU time", c.cpu, before.cpu, after.cpu); err != nil {
		t.Error(err)
	}
	if err := near("working set", c.workingSet, first.usage-first.inactive, last.usage-last.inactive); err != nil {
		t.Error(err)
	}
	t.Logf("CPU time %.3f s (kernel %.3f to %.3f), working set %.1f MiB", c.cpu, before.cpu, after.cpu, c.workingSet/(1<<20))
	return nil
}

func podStatistics(ctx context.Context, n *node.Node, pod *corev1.Pod) (*statsapi.PodStats, error) {
	data, err := node.Fetch(ctx, n.KubeletURL()+"/stats/summary")
	if err != nil {
		return nil, err
	}
	var summary statsapi.Summary
	if err := json.Unmarshal(data, &summary); err != nil {
		return nil, err
	}
	for i := range summary.Pods {
		if summary.Pods[i].PodRef.Name == pod.Name && len(summary.Pods[i].Containers) == 1 {
			return &summary.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("the summary has no pod %s with its container", pod.Name)
}

func compareSummary(t *testing.T, n *node.Node, pod *corev1.Pod, level string, truth *history) {
	eventually(t, "kubelet's summary is of a time that was watched", func(ctx context.Context) error {
		stats, err := podStatistics(ctx, n, pod)
		if err != nil {
			return err
		}
		cpu, memory := stats.CPU, stats.Memory
		if level == "container" {
			cpu, memory = stats.Containers[0].CPU, stats.Containers[0].Memory
		}
		if cpu == nil || memory == nil || cpu.UsageCoreNanoSeconds == nil || memory.WorkingSetBytes == nil || cpu.UsageNanoCores == nil {
			return fmt.Errorf("CPU %+v, memory %+v", cpu, memory)
		}
		if rate := *cpu.UsageNanoCores; rate == 0 || rate > 3e9 {
			return fmt.Errorf("a busy %s uses %d nanocores", level, rate)
		}
		return claim{cpu.Time.Time, memory.Time.Time, time.Second, float64(*cpu.UsageCoreNanoSeconds) / 1e9, float64(*memory.WorkingSetBytes)}.check(t, truth)
	})
}

func compareResource(t *testing.T, n *node.Node, pod *corev1.Pod, level string, truth *history) {
	eventually(t, "kubelet's resource metrics are of a time that was watched", func(ctx context.Context) error {
		data, err := node.Fetch(ctx, n.KubeletURL()+"/metrics/resource")
		if err != nil {
			return err
		}
		c := claim{vague: time.Millisecond}
		for line := range strings.Lines(string(data)) {
			name, rest, _ := strings.Cut(line, "{")
			labels, values, _ := strings.Cut(rest, "} ")
			fields := strings.Fields(values)
			if !strings.HasPrefix(name, level+"_") || !strings.Contains(labels, `pod="`+pod.Name+`"`) || len(fields) != 2 {
				continue
			}
			value, _ := strconv.ParseFloat(fields[0], 64)
			millis, _ := strconv.ParseInt(fields[1], 10, 64)
			switch name {
			case level + "_cpu_usage_seconds_total":
				c.cpu, c.cpuAt = value, time.UnixMilli(millis)
			case level + "_memory_working_set_bytes":
				c.workingSet, c.memoryAt = value, time.UnixMilli(millis)
			}
		}
		return c.check(t, truth)
	})
}

// criNetwork compares what the guest sent with what was fetched from it.
func criNetwork(t *testing.T, n *node.Node, vm *corev1.Pod) {
	page, err := node.Fetch(deadline(t), "http://"+vm.Status.PodIP+"/big")
	must(t, err)
	if len(page) != served {
		t.Fatalf("the VM's page has %d bytes, want %d", len(page), served)
	}
	stats, err := podStatistics(deadline(t), n, vm)
	must(t, err)
	if stats.Network == nil || stats.Network.TxBytes == nil || stats.ProcessStats == nil || *stats.ProcessStats.ProcessCount != 1 {
		t.Fatalf("network %+v, processes %+v, want both, and QEMU alone", stats.Network, stats.ProcessStats)
	}
	// Frames have headers, of 66 bytes in about 1500.
	if err := near("traffic from the VM", float64(*stats.Network.TxBytes), served, served*1.06); err != nil {
		t.Error(err)
	}
	if stats.Memory.AvailableBytes == nil || *stats.Memory.AvailableBytes == 0 {
		t.Errorf("available memory is %v", stats.Memory.AvailableBytes)
	}
}

// criDisk compares what kubelet says of the VM's disk with the blocks of its files.
func criDisk(t *testing.T, n *node.Node, vm *corev1.Pod) {
	_, id, _ := strings.Cut(vm.Status.ContainerStatuses[0].ContainerID, "://")
	folder := filepath.Join(n.VMStateDir(), "vms", strings.TrimPrefix(id, "vm."))
	eventually(t, "kubelet knows how far the VM's disk has grown", func(ctx context.Context) error {
		stats, err := podStatistics(ctx, n, vm)
		if err != nil {
			return err
		}
		told := stats.Containers[0].Rootfs
		if told == nil || told.UsedBytes == nil || *told.UsedBytes < served {
			return fmt.Errorf("the disk of a guest that wrote %d bytes is %+v", served, told)
		}
		out, err := exec.CommandContext(ctx, "du", "--summarize", "--block-size=1", folder).Output()
		if err != nil {
			return err
		}
		var grown float64
		if _, err := fmt.Sscan(string(out), &grown); err != nil {
			return err
		}
		return near("the disk", float64(*told.UsedBytes), grown, grown)
	})
}

// memoryInGuest is the memory that the guest's kernel says to have.
func memoryInGuest(t *testing.T, n *node.Node, vm *corev1.Pod) float64 {
	t.Helper()
	var out string
	eventually(t, "commands run in the guest", func(ctx context.Context) (err error) {
		out, err = execIn(ctx, n, vm, "grep MemTotal: /proc/meminfo")
		return err
	})
	var kibibytes float64
	if _, err := fmt.Sscanf(out, "MemTotal: %g kB", &kibibytes); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return kibibytes * 1024
}

// criMetrics looks for the metrics that replace cAdvisor's.
func criMetrics(t *testing.T, n *node.Node, vm *corev1.Pod) {
	memory := memoryInGuest(t, n, vm)
	eventually(t, "kubelet has metrics of the VM as of a container", func(ctx context.Context) error {
		data, err := node.Fetch(ctx, n.KubeletURL()+"/metrics/cadvisor")
		if err != nil {
			return err
		}
		values := map[string]float64{}
		for line := range strings.Lines(string(data)) {
			name, rest, _ := strings.Cut(line, "{")
			labels, value, _ := strings.Cut(rest, "} ")
			if strings.Contains(labels, `pod="`+vm.Name+`"`) {
				values[name], _ = strconv.ParseFloat(strings.Fields(value)[0], 64)
			}
		}
		for name, least := range map[string]float64{
			"container_cpu_usage_seconds_total":         1,
			"container_memory_working_set_bytes":        64 << 20,
			"container_network_transmit_bytes_total":    served,
			"container_fs_writes_bytes_total":           0,
			"container_fs_usage_bytes":                  served,
			"container_processes":                       1,
			"container_threads":                         2,
			"container_file_descriptors":                10,
			"container_spec_memory_limit_bytes":         64 << 20,
			"container_start_time_seconds":              1.7e9,
			"ambipod_guest_memory_usable_bytes":         1 << 20,
			"container_cpu_cfs_throttled_periods_total": 0,
		} {
			if value, there := values[name]; !there || value < least {
				return fmt.Errorf("%s is %g (%t), want at least %g", name, value, there, least)
			}
		}
		if err := near("the guest's memory", values["ambipod_guest_memory_total_bytes"], memory, memory); err != nil {
			return err
		}
		if !strings.Contains(string(data), `pod="busy-container-`) {
			return fmt.Errorf("no metrics of the container pod")
		}
		return nil
	})
}

// TestOddVMsSpoilNoList has a VM whose QEMU answers nobody, and one whose files are
// gone, beside a healthy one.
func TestOddVMsSpoilNoList(t *testing.T) {
	n := criNode(t)
	serveSector(t, n)
	c := dial(t, n)
	well, stuck, bare := c.run(t, sectorKind), c.run(t, sectorKind), c.run(t, sectorKind)
	for _, p := range []*pod{well, stuck, bare} {
		p.waitReady(t)
	}
	for _, pid := range membersOf(t, n, stuck.id) {
		number, err := strconv.Atoi(pid)
		must(t, err)
		must(t, syscall.Kill(number, syscall.SIGSTOP))
		t.Cleanup(func() { _ = syscall.Kill(number, syscall.SIGCONT) })
	}
	must(t, os.RemoveAll(filepath.Join(n.VMStateDir(), "vms", strings.TrimPrefix(bare.id, "vm."))))

	for range 3 { // also while QEMU still owes an answer
		containers, err := c.ListContainerStats(deadline(t), &runtimeapi.ListContainerStatsRequest{})
		must(t, err)
		got := map[string]*runtimeapi.ContainerStats{}
		for _, s := range containers.GetStats() {
			got[s.GetAttributes().GetId()] = s
		}
		for name, p := range map[string]*pod{"healthy": well, "stuck": stuck} {
			if s := got[p.id]; s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
				t.Errorf("the %s VM has the statistics %v", name, s)
			}
		}
		pods, err := c.ListPodSandboxStats(deadline(t), &runtimeapi.ListPodSandboxStatsRequest{})
		must(t, err)
		if len(pods.GetStats()) < 3 {
			t.Errorf("%d pods have statistics, want three", len(pods.GetStats()))
		}
		oddMetrics(t, c, well, stuck)
	}
	if _, err := c.ContainerStatus(deadline(t), &runtimeapi.ContainerStatusRequest{ContainerId: stuck.id, Verbose: true}); err != nil {
		t.Error(err)
	}
	answer, err := c.PodSandboxStats(deadline(t), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: stuck.sandboxID})
	must(t, err)
	stats := answer.GetStats()
	if linux := stats.GetLinux(); stats.GetAttributes().GetId() != stuck.sandboxID || len(linux.GetContainers()) != 1 ||
		linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 || linux.GetNetwork().GetDefaultInterface() == nil {
		t.Errorf("the stuck VM's pod has the statistics %v", stats)
	}
}

func oddMetrics(t *testing.T, c client, well, stuck *pod) {
	t.Helper()
	answer, err := c.ListPodSandboxMetrics(deadline(t), &runtimeapi.ListPodSandboxMetricsRequest{})
	must(t, err)
	has := map[string]map[string]bool{}
	for _, p := range answer.GetPodMetrics() {
		for _, container := range p.GetContainerMetrics() {
			names := map[string]bool{}
			for _, m := range container.GetMetrics() {
				names[m.GetName()] = true
			}
			has[container.GetContainerId()] = names
		}
	}
	for _, want := range []struct {
		p      *pod
		metric string
	}{
		{well, "container_cpu_usage_seconds_total"},
		{well, "container_fs_reads_total"},
		{stuck, "container_cpu_usage_seconds_total"},
	} {
		if !has[want.p.id][want.metric] {
			t.Errorf("VM %s lacks %s: %v", want.p.id, want.metric, has[want.p.id])
		}
	}
}
