package proxy

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func handler(name string, features bool) *runtimeapi.RuntimeHandler {
	return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: features}}
}

// Status has the handlers by which pods can reach each runtime, once, and the
// features that all of them have; readiness is the default's alone.
func TestStatusMerges(t *testing.T) {
	s := newSetup(t)
	s.def.mu.Lock()
	s.def.status.RuntimeHandlers = []*runtimeapi.RuntimeHandler{handler("", true), handler("runc", true), handler("vm", true)}
	s.def.status.Features = &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true}
	s.def.mu.Unlock()
	s.vm.mu.Lock()
	s.vm.status.RuntimeHandlers = []*runtimeapi.RuntimeHandler{handler("", false), handler("vm", false), handler("unreachable", true)}
	s.vm.status.Features = &runtimeapi.RuntimeFeatures{MountOptions: true, UserNamespacesHostNetwork: true}
	s.vm.status.Status.Conditions[0] = &runtimeapi.RuntimeCondition{Type: "RuntimeReady", Reason: "NoLibvirt", Message: "libvirtd is down"}
	s.vm.mu.Unlock()
	got := must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{}))
	var names []string
	for _, h := range got.GetRuntimeHandlers() {
		names = append(names, h.GetName())
		if want := h.GetName() != "vm"; h.GetFeatures().GetUserNamespaces() != want {
			t.Errorf("handler %q: user namespaces %v, want %v", h.GetName(), !want, want)
		}
	}
	if want := []string{"", "runc", "vm"}; !slices.Equal(names, want) {
		t.Errorf("handlers %q, want %q", names, want)
	}
	if f := got.GetFeatures(); f.GetSupplementalGroupsPolicy() || !f.GetMountOptions() || f.GetUserNamespacesHostNetwork() {
		t.Errorf("features %v, want mount options only", f)
	}
	if c := got.GetStatus().GetConditions(); len(c) != 2 || !c[0].GetStatus() || !c[1].GetStatus() {
		t.Errorf("conditions %v, want the default's", c)
	}
	if len(got.GetInfo()) != 0 {
		t.Error("info without verbose")
	}
}

// A runtime that states no features has no say in them.
func TestStatusWithoutFeatures(t *testing.T) {
	s := newSetup(t)
	s.def.mu.Lock()
	s.def.status.Features = &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}
	s.def.mu.Unlock()
	got := must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{}))
	if !got.GetFeatures().GetSupplementalGroupsPolicy() {
		t.Error("the default's feature is lost")
	}
}

// Verbose info tells about every other runtime: its conditions while it is there,
// the reason when it is not. Its absence does not change the node's readiness.
func TestStatusInfo(t *testing.T) {
	s := newSetup(t)
	s.def.mu.Lock()
	s.def.status.Info = map[string]string{"config": "{}"}
	s.def.mu.Unlock()
	s.vm.mu.Lock()
	s.vm.status.Status.Conditions[0] = &runtimeapi.RuntimeCondition{Type: "RuntimeReady", Reason: "NoLibvirt", Message: "libvirtd is down"}
	s.vm.status.Info = map[string]string{"accelerator": "tcg"}
	s.vm.mu.Unlock()
	info := func() (report, *runtimeapi.StatusResponse) {
		got := must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{Verbose: true}))
		var reports map[string]report
		if err := json.Unmarshal([]byte(got.GetInfo()[infoKey]), &reports); err != nil {
			t.Fatal(err)
		}
		if got.GetInfo()["config"] != "{}" {
			t.Error("the default's info is lost")
		}
		return reports["vm"], got
	}
	r, _ := info()
	if r.Connection != "READY" || r.Stale || r.Conditions["RuntimeReady"] != "false: NoLibvirt: libvirtd is down" ||
		r.Conditions["NetworkReady"] != "true" || r.Info["accelerator"] != "tcg" || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
	s.vm.stop()
	eventually(t, "the VM runtime is missed", func() bool { return !s.backend("vm").isReady() })
	r, got := info()
	if !r.Stale || !r.Seen || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "does not answer") {
		t.Errorf("report %+v", r)
	}
	if !got.GetStatus().GetConditions()[0].GetStatus() {
		t.Error("the node is not ready because a VM runtime is away")
	}
}

// A handler that neither the default has told nor the configuration has is
// refused with both lists in the sentence.
func TestUnknownHandler(t *testing.T) {
	s := newSetup(t)
	run := func(handler string) error {
		_, err := s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: handler})
		return err
	}
	if err := run("kata"); err != nil {
		t.Errorf("%v, but the default has not told its handlers", err)
	}
	s.def.mu.Lock()
	s.def.status.RuntimeHandlers = []*runtimeapi.RuntimeHandler{handler("", true), handler("runc", true)}
	s.def.mu.Unlock()
	must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{}))
	checkRefusal(t, run("kata"), "RunPodSandbox", []string{`"kata"`, "containerd (runc)", "(vm)"})
	if err := run("runc"); err != nil {
		t.Error(err)
	}
	if err := run("vm"); err != nil {
		t.Error(err)
	}
}

// RuntimeConfig is the default's. A runtime with another cgroup driver is
// reported in the log, in Status and as a metric, until it agrees.
func TestCgroupDriverMismatch(t *testing.T) {
	s := newStoppedSetup(t)
	s.vm.driver = runtimeapi.CgroupDriver_SYSTEMD
	s.def.start(t)
	s.vm.start(t)
	s.startProxy(t)
	s.waitConnected(t, "containerd", "vm")
	config := must[*runtimeapi.RuntimeConfigResponse](t)(s.RuntimeConfig(ctx(t), &runtimeapi.RuntimeConfigRequest{}))
	if got := config.GetLinux().GetCgroupDriver(); got != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("driver %v, want the default's", got)
	}
	const sentence = "cgroup driver of runtime vm is SYSTEMD but that of containerd is CGROUPFS"
	eventually(t, "the log says so", func() bool { return strings.Contains(s.log.String(), "level=ERROR msg=\""+sentence) })
	info := must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{Verbose: true})).GetInfo()[infoKey]
	if !strings.Contains(info, sentence) {
		t.Errorf("info %s does not say so", info)
	}
	if text := scrape(t, s.proxy, "/metrics"); !strings.Contains(text, `criproxy_cgroup_driver_mismatch{runtime="vm"} 1`) {
		t.Error("no metric says so")
	}
	s.vm.stop()
	s.vm.driver = runtimeapi.CgroupDriver_CGROUPFS
	s.vm.start(t)
	eventually(t, "it is all right again", func() bool {
		return strings.Contains(scrape(t, s.proxy, "/metrics"), `criproxy_cgroup_driver_mismatch{runtime="vm"} 0`)
	})
}

// kubelet reads the first file system only, and takes none for an error.
func TestImageFilesystems(t *testing.T) {
	s := newSetup(t)
	mounts := func() []string {
		var all []string
		for _, fs := range must[*runtimeapi.ImageFsInfoResponse](t)(s.images.ImageFsInfo(ctx(t), &runtimeapi.ImageFsInfoRequest{})).GetImageFilesystems() {
			all = append(all, fs.GetFsId().GetMountpoint())
		}
		return all
	}
	for _, when := range []func(){func() {}, s.vm.stop, s.def.stop} {
		when()
		if got := mounts(); !slices.Equal(got, []string{"/containerd", "/vm"}) {
			t.Errorf("file systems %q, want the default's first", got)
		}
	}
}

// Metric descriptors are the union by name; metrics are those of all.
func TestMetricsOfPods(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	var names []string
	for _, d := range must[*runtimeapi.ListMetricDescriptorsResponse](t)(s.ListMetricDescriptors(ctx(t), &runtimeapi.ListMetricDescriptorsRequest{})).GetDescriptors() {
		names = append(names, d.GetName())
		if d.GetName() == "shared" && d.GetHelp() != "of containerd" {
			t.Errorf("descriptor %v, want the default's", d)
		}
	}
	if want := []string{"shared", "only_containerd", "only_vm"}; !slices.Equal(names, want) {
		t.Errorf("descriptors %q, want %q", names, want)
	}
	metrics := must[*runtimeapi.ListPodSandboxMetricsResponse](t)(s.ListPodSandboxMetrics(ctx(t), &runtimeapi.ListPodSandboxMetricsRequest{})).GetPodMetrics()
	if len(metrics) != 2 || !strings.HasPrefix(metrics[1].GetPodSandboxId(), "vm.") || !strings.HasPrefix(metrics[1].GetContainerMetrics()[0].GetContainerId(), "vm.") {
		t.Errorf("metrics %v", metrics)
	}
}

// What the default does not implement is not implemented, so that kubelet does
// not take one runtime's part for the whole; what only another lacks is its lack.
func TestUnimplementedLists(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	_, err := s.ListPodSandboxStats(ctx(t), &runtimeapi.ListPodSandboxStatsRequest{})
	wantCode(t, err, codes.Unimplemented)
	s.vm.onCall(func(_ context.Context, method string) error {
		return status.Error(codes.Unimplemented, method)
	})
	stats := must[*runtimeapi.ListContainerStatsResponse](t)(s.ListContainerStats(ctx(t), &runtimeapi.ListContainerStatsRequest{}))
	if len(stats.GetStats()) != 1 {
		t.Errorf("statistics %v, want the default's", stats)
	}
}

// Status does not wait for a hung runtime longer than once.
func TestStatusWithAHungRuntime(t *testing.T) {
	s := newSetup(t)
	s.vm.onCall(func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{}))
	started := time.Now()
	must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{}))
	if took := time.Since(started); took > atOnce {
		t.Errorf("the second Status took %v", took)
	}
}
