package vmctl

import (
	"bytes"
	"encoding/json"
	"flag"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(digit string) string { return strings.Repeat(digit, 64) }

// someVMs are in many states, sorted as List does.
func someVMs() []VM {
	started, code := epoch.Add(time.Minute), int32(137)
	return []VM{
		{Namespace: "default", Pod: "db", SandboxID: id("a"), State: stateNone, IPs: []string{}, CreatedAt: epoch},
		{
			Namespace: "default", Pod: "web", SandboxID: id("b"), ContainerID: id("c"), State: stateExited, Reason: "OOMKilled", ExitCode: &code,
			IPs: []string{}, CPUs: 2, MemoryBytes: 1 << 30, Image: "vm.ambipod.io/a:latest", CreatedAt: epoch, StartedAt: &started,
		},
		{
			Namespace: "default", Pod: "web", SandboxID: "vm." + id("d"), ContainerID: "vm." + id("e"), State: "running",
			IPs: []string{"10.0.0.2", "fd00::2"}, CPUs: 3, MemoryBytes: 1536 << 20, Image: "vm.ambipod.io/b:latest", CreatedAt: epoch.Add(time.Hour),
			StartedAt: &started, Restarts: 3, Reboots: 1,
		},
		{
			Namespace: "shop", Pod: "web", SandboxID: id("f"), ContainerID: id("c")[:8] + id("9")[8:], State: "paused", Reason: "I/O error",
			IPs: []string{"10.0.0.3"}, CPUs: 1, MemoryBytes: 1000, Image: "bad\tname\x1b[31m", CreatedAt: epoch.Add(2 * time.Hour), StartedAt: &started,
		},
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%s differs (%v):\n%s", file, err, got)
	}
}

func TestWriteVMs(t *testing.T) {
	for format, name := range map[string]string{FormatTable: "list.txt", FormatJSON: "list.json", FormatYAML: "list.yaml", FormatName: "list.names"} {
		var out bytes.Buffer
		if err := WriteVMs(&out, format, someVMs(), epoch.Add(50*time.Hour)); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
	}
	var none bytes.Buffer
	if err := WriteVMs(&none, FormatJSON, nil, epoch); err != nil || !strings.Contains(none.String(), `"items": []`) {
		t.Errorf("no VMs are %s, %v", none.String(), err)
	}
	if err := WriteVMs(&none, "xml", nil, epoch); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "xml") {
		t.Errorf("format xml: %v", err)
	}
}

func TestWriteImages(t *testing.T) {
	images := []Image{
		{ID: id("1"), Names: []string{"vm.ambipod.io/a:latest", "vm.ambipod.io/b:latest"}, Format: "qcow2", SizeBytes: 20 << 20, VirtualBytes: 10 << 30, PulledAt: epoch, Users: []string{"default/web", "shop/web"}},
		{ID: "vm." + id("2"), SizeBytes: 512},
	}
	var out bytes.Buffer
	if err := WriteImages(&out, FormatTable, images, epoch.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	golden(t, "images.txt", out.String())
}

func TestFind(t *testing.T) {
	vms := someVMs()
	for name, want := range map[string]VM{
		"db": vms[0], "default/db": vms[0], "default/web": vms[2], "shop/web": vms[3],
		id("b"): vms[1], "ddd": vms[2], "vm.eee": vms[2], "eee": vms[2], "ccccccccc": vms[1], "cccccccc9": vms[3],
	} {
		if got, err := find(vms, name); err != nil || got.SandboxID != want.SandboxID {
			t.Errorf("%s is %+v, %v", name, got, err)
		}
	}
	for name, c := range map[string]struct {
		is   func(error) bool
		text string
	}{
		"web":    {errdefs.IsInvalidArgument, "default/web eeeeeeeeeeee, shop/web cccccccc9999"},
		"ccc":    {errdefs.IsInvalidArgument, "default/web cccccccccccc, shop/web cccccccc9999"},
		"nobody": {errdefs.IsNotFound, "there are default/db aaaaaaaaaaaa, default/web"},
		"vm.":    {errdefs.IsNotFound, `"vm."`},
		"":       {errdefs.IsNotFound, `""`},
	} {
		if _, err := find(vms, name); !c.is(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := find(nil, "x"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "none at all") {
		t.Errorf("an empty node: %v", err)
	}
	many := make([]VM, 25)
	for i := range many {
		many[i] = vms[0]
	}
	if text := describeAll(many); !strings.HasSuffix(text, ", 15 more") {
		t.Errorf("25 VMs are %s", text)
	}
}

func TestUnits(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1Ki", 1536: "1.5Ki", 192 << 20: "192Mi", 1<<30 + 1<<29: "1.5Gi", 5 << 50: "5120Ti"} {
		if got := size(bytes); got != want {
			t.Errorf("%d bytes are %s, want %s", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 47 * time.Hour: "47h", 49 * time.Hour: "2d"} {
		if got := age(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	half := statushttp.Download{Name: "vm.ambipod.io/x:latest", DoneBytes: 50 << 20, TotalBytes: 100 << 20, BytesPerSecond: 5 << 20, RemainingSeconds: 70}
	unknown := statushttp.Download{Name: "y", DoneBytes: 1, TotalBytes: -1, RemainingSeconds: -1}
	var out bytes.Buffer
	p := NewProgress(&out, true)
	p.update([]statushttp.Download{half, unknown})
	p.update([]statushttp.Download{half})
	p.end()
	want := "vm.ambipod.io/x:latest  [###############...............]  50%  50Mi of 100Mi  5Mi/s  1m10s left\ny  1  0/s\n" +
		"\x1b[2A\x1b[Jvm.ambipod.io/x:latest  [###############...............]  50%  50Mi of 100Mi  5Mi/s  1m10s left\n\x1b[1A\x1b[J"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	// A server that sends more than it announced.
	if text := bar(statushttp.Download{DoneBytes: 3, TotalBytes: 2}); !strings.Contains(text, "100%") {
		t.Error(text)
	}
	if got := ofImage([]statushttp.Download{half, unknown}, "vm.ambipod.io/x"); len(got) != 1 || got[0] != half {
		t.Errorf("downloads of x are %+v", got)
	}
}

func TestToPNG(t *testing.T) {
	data, err := toPNG(libvirttools.Picture{MIME: "image/x-portable-pixmap", Data: []byte("P6\n2 1\n255\n\x01\x02\x03\xff\x00\x80")})
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil || picture.Bounds().Dx() != 2 || color.NRGBAModel.Convert(picture.At(1, 0)) != (color.NRGBA{255, 0, 128, 255}) {
		t.Errorf("%v, %v", picture, err)
	}
	if again, err := toPNG(libvirttools.Picture{Data: data}); err != nil || !bytes.Equal(again, data) {
		t.Errorf("a PNG is changed: %v", err)
	}
	for _, broken := range []string{"", "GIF89a", "P6\n2 1\n255\n\x01", "P6\n-1 1\n255\n", "P6\n99999999 99999999\n255\n", "P6\n1 1\n65535\n......"} {
		if _, err := toPNG(libvirttools.Picture{Data: []byte(broken)}); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %v", broken, err)
		}
	}
}

func TestReadFacts(t *testing.T) {
	own := map[string]string{
		"libvirt": `{"LibvirtVersion":"9.0.0","QEMUVersion":"7.2.0"}`, "libvirtURI": `"qemu:///x"`, "statusAddress": `"unix:/s"`,
		"layout": `{"State":"/st","Run":"/r"}`, "accelerator": `"tcg"`,
	}
	check := func(info map[string]string) {
		t.Helper()
		f, err := readFacts(info)
		if err != nil || f.LibvirtURI != "qemu:///x" || f.StatusAddress != "unix:/s" || f.Layout.State != "/st" || f.Libvirt.QEMUVersion != "7.2.0" || f.Accelerator != "tcg" {
			t.Errorf("%+v, %v", f, err)
		}
	}
	check(own)
	merged, err := json.Marshal(map[string]any{"vm": map[string]any{"info": own}, "other": map[string]any{"info": map[string]string{"x": "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"config": "{}", runtimesInfo: string(merged)})
	if _, err := readFacts(map[string]string{"config": "{}"}); !errdefs.IsUnavailable(err) {
		t.Errorf("a status that is containerd's: %v", err)
	}
	for _, info := range []map[string]string{{"libvirtURI": "{"}, {runtimesInfo: "nonsense"}} {
		if _, err := readFacts(info); !errdefs.IsDataLoss(err) {
			t.Errorf("%v: %v", info, err)
		}
	}
}

func TestDescribe(t *testing.T) {
	info := map[string]string{"domainUUID": `"u"`, "vcpus": "2", "memoryBytes": "5", "domain": `{"Phase":"paused","Reason":"I/O error"}`, "reboots": "4"}
	var running VM
	running.describe(&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING, StartedAt: 1}, readContainerInfo(info))
	if running.State != "paused" || running.Reason != "I/O error" || running.CPUs != 2 || running.Reboots != 4 || running.DomainUUID != "u" {
		t.Errorf("%+v", running)
	}
	var away VM // libvirt does not answer
	away.describe(&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING, StartedAt: 1}, readContainerInfo(map[string]string{"domain": `"libvirt is away"`}))
	if away.State != stateUnknown {
		t.Errorf("%+v", away)
	}
	var ended VM
	ended.describe(&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_EXITED, StartedAt: 1, ExitCode: 3, Reason: "Error", Message: "why"}, readContainerInfo(info))
	ended.ContainerID = "c"
	if ended.State != stateExited || *ended.ExitCode != 3 || ended.Problem != "why" || ended.Running() {
		t.Errorf("%+v", ended)
	}
}

func TestHarmless(t *testing.T) {
	for name, want := range map[string]bool{
		"vm.ambipod.io/screen": true, "VirtletVCPUCount": true, "vm.ambipod.io/user-data": false, "VirtletCloudInitUserData": false,
		"vm.ambipod.io/user-data-script": false, "VirtletCloudInitMetaData": false, "vm.ambipod.io/ssh-keys": false, "example.org/x": false,
	} {
		if harmless(name) != want {
			t.Errorf("%s: harmless is %t", name, !want)
		}
	}
}
