package criserver

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/metadata"
	"github.com/ambipod/ambipod/pkg/network"
	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/tpm"
)

// bareNode is one where little is installed.
type bareNode struct {
	able  libvirttools.Abilities
	asked string // the machine type
}

func (n *bareNode) Abilities(_ context.Context, _, _, machine string) (libvirttools.Abilities, error) {
	n.asked = machine
	return n.able, nil
}

// noTPMs is a node's emulator of TPMs, which fails if the error is set.
type noTPMs struct{ err error }

func (n noTPMs) Check() error                         { return n.err }
func (n noTPMs) Start(context.Context, tpm.TPM) error { return n.err }

func planWith(t *testing.T, values map[string]string) vmPlan {
	t.Helper()
	pod := map[string]string{}
	for name, value := range values {
		pod[annotations.Domain+name] = value
	}
	settings, err := annotations.Parse(pod)
	if err != nil {
		t.Fatal(err)
	}
	return vmPlan{settings: settings}
}

func TestCheckHardware(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pod   map[string]string
		able  libvirttools.Abilities
		noTPM bool
		want  string // part of the error, "" for none
		asked string
	}{
		"nothing special":   {noTPM: true},
		"BIOS":              {pod: map[string]string{"firmware": "bios"}},
		"no UEFI":           {pod: map[string]string{"firmware": "uefi"}, want: "install the Debian package ovmf", asked: "pc"},
		"UEFI":              {pod: map[string]string{"firmware": "uefi"}, able: libvirttools.Abilities{UEFI: true}, asked: "pc"},
		"UEFI on Q35":       {pod: map[string]string{"firmware": "uefi", "machine": "q35"}, able: libvirttools.Abilities{UEFI: true}, asked: "q35"},
		"no secure boot":    {pod: map[string]string{"firmware": "uefi-secure"}, able: libvirttools.Abilities{UEFI: true}, want: "secure boot", asked: "q35"},
		"secure boot":       {pod: map[string]string{"firmware": "uefi-secure"}, able: libvirttools.Abilities{UEFI: true, SecureBoot: true}, asked: "q35"},
		"no swtpm":          {pod: map[string]string{"tpm": "2.0"}, noTPM: true, want: "annotation vm.ambipod.io/tpm: "},
		"swtpm, not wanted": {pod: map[string]string{"tpm": "none"}, noTPM: true},
		"swtpm":             {pod: map[string]string{"tpm": "2.0"}},
	} {
		node, tpms := &bareNode{able: c.able}, noTPMs{}
		if c.noTPM {
			tpms.err = errdefs.ErrFailedPrecondition
		}
		server := testServer()
		server.Machines, server.TPMs = node, tpms
		err := server.checkHardware(t.Context(), planWith(t, c.pod))
		if c.want == "" && err != nil || c.want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
		if node.asked != c.asked {
			t.Errorf("%s: asked about machine %q, want %q", name, node.asked, c.asked)
		}
	}
}

func TestCheckProcessor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pod   map[string]string
		accel string
		words []string // of the error, none for none
	}{
		"known":               {map[string]string{"cpu-model": "EPYC"}, "tcg", nil},
		"unknown":             {map[string]string{"cpu-model": "Z80"}, "kvm", []string{"cpu-model", `"Z80"`, "host-model, host-passthrough, maximum and qemu64, EPYC"}},
		"maximum":             {map[string]string{"cpu-model": "maximum"}, "tcg", nil},
		"host with KVM":       {map[string]string{"cpu-model": "host-model"}, "kvm", nil},
		"host without KVM":    {map[string]string{"cpu-model": "host-passthrough"}, "tcg", []string{"cpu-model", `"host-passthrough"`, "needs KVM", "maximum"}},
		"setting without KVM": {map[string]string{"libvirt-cpu-setting": "mode: host-model"}, "tcg", []string{"libvirt-cpu-setting", `"host-model"`}},
	} {
		server := testServer()
		server.Accel, server.Machines = c.accel, &bareNode{able: libvirttools.Abilities{CPUModels: []string{"qemu64", "EPYC"}}}
		err := server.checkHardware(t.Context(), planWith(t, c.pod))
		if len(c.words) == 0 && err != nil || len(c.words) > 0 && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: the error does not say %q: %v", name, word, err)
			}
		}
	}
}

// TestDomainHardware: what annotations say about the machine reaches libvirt's words.
func TestDomainHardware(t *testing.T) {
	t.Parallel()
	box := sandbox{metadata.Sandbox{ID: "5a"}, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "7e1c"}}}
	type hardware struct {
		Machine, Watchdog, Serial, TPM, Bus, ConfigBus string
		Firmware                                       libvirttools.Firmware
		LocalTime                                      bool
		HugePages                                      int64
	}
	state := "/var/lib/ambipod/vms/" + testID
	for name, c := range map[string]struct {
		pod  map[string]string
		want hardware
	}{
		"usual": {nil, hardware{Machine: "pc", Serial: "7e1c", Bus: "scsi", ConfigBus: "scsi"}},
		"for Windows": {
			map[string]string{
				"firmware": "uefi-secure", "tpm": "2.0", "clock": "localtime", "disk-bus": "sata", "watchdog": "reset", "serial-number": "W-1",
			},
			hardware{
				Machine: "q35", Watchdog: "reset", Serial: "W-1", TPM: "/run/ambipod/vms/" + testID[:16] + "/tpm.sock", Bus: "sata", ConfigBus: "sata",
				Firmware: libvirttools.Firmware{UEFI: true, SecureBoot: true, Variables: state + "/firmware.vars"}, LocalTime: true,
			},
		},
		"virtio-blk": {
			map[string]string{"disk-bus": "virtio", "firmware": "uefi"},
			hardware{
				Machine: "pc", Serial: "7e1c", Bus: "virtio", ConfigBus: "scsi",
				Firmware: libvirttools.Firmware{UEFI: true, Variables: state + "/firmware.vars"},
			},
		},
	} {
		got := testServer().domain(box, testVM(), planWith(t, c.pod))
		have := hardware{
			got.Machine, got.Watchdog, got.Serial, got.TPMSocket, got.Disks[0].Bus, got.Disks[1].Bus, got.Firmware, got.LocalTime, got.HugePageBytes,
		}
		if diff := cmp.Diff(c.want, have); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	plan := planWith(t, nil)
	plan.size.pageBytes = 2 << 20
	if got := testServer().domain(box, testVM(), plan).HugePageBytes; got != 2<<20 {
		t.Errorf("huge pages of %d bytes, want 2 MiB", got)
	}
}

func TestGrantedCards(t *testing.T) {
	t.Parallel()
	server := testServer()
	vm := testVM()
	result := &network.Result{Interfaces: []network.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1450}}}
	for name, c := range map[string]struct {
		pod    map[string]string
		vcpus  int
		want   fdproto.NIC
		queues int
	}{
		"usual":          {nil, 1, fdproto.NIC{Model: "virtio-net-pci", Bus: "pci.0"}, 1},
		"four CPUs":      {nil, 4, fdproto.NIC{Model: "virtio-net-pci", Bus: "pci.0"}, 4},
		"many CPUs":      {nil, 64, fdproto.NIC{Model: "virtio-net-pci", Bus: "pci.0"}, 8},
		"as asked for":   {map[string]string{"nic-queues": "2"}, 4, fdproto.NIC{Model: "virtio-net-pci", Bus: "pci.0"}, 2},
		"without virtio": {map[string]string{"nic-model": "e1000e", "machine": "q35"}, 4, fdproto.NIC{Model: "e1000e", Bus: "pcie.0"}, 1},
	} {
		vm.VCPUs = c.vcpus
		settings := planWith(t, c.pod).settings
		c.want.MAC, c.want.MTU = "02:00:00:00:00:01", 1450
		if diff := cmp.Diff([]fdproto.NIC{c.want}, server.grant(sandbox{}, vm, settings, result).NICs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if got := nicQueues(vm, settings); got != c.queues {
			t.Errorf("%s: %d queues, want %d", name, got, c.queues)
		}
	}
}

func TestHugePagesRefused(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string][]*runtimeapi.HugepageLimit{
		"two sizes":   {{PageSize: "2MB", Limit: 64 << 20}, {PageSize: "1GB", Limit: 1 << 30}},
		"odd size":    {{PageSize: "3MB", Limit: 3 << 20}},
		"half a page": {{PageSize: "2MB", Limit: 65 << 20}},
		"too many":    {{PageSize: "2MB", Limit: 1 << 63}},
		"too little":  {{PageSize: "2MB", Limit: 32 << 20}},
	} {
		if _, err := sizeOf(&runtimeapi.LinuxContainerResources{HugepageLimits: limits}, annotations.Settings{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFreeHugePages(t *testing.T) {
	t.Parallel()
	node := func(free, promised, over, surplus string) fstest.MapFS {
		return fstest.MapFS{
			"hugepages-2048kB/free_hugepages": {Data: []byte(free)}, "hugepages-2048kB/resv_hugepages": {Data: []byte(promised)},
			"hugepages-2048kB/nr_overcommit_hugepages": {Data: []byte(over)}, "hugepages-2048kB/surplus_hugepages": {Data: []byte(surplus)},
		}
	}
	for name, c := range map[string]struct {
		node fstest.MapFS
		want int64
	}{
		"none":         {node("0\n", "0\n", "0\n", "0\n"), 0},
		"no such size": {fstest.MapFS{}, 0},
		"some":         {node("10\n", "0\n", "0\n", "0\n"), 10},
		"promised":     {node("10\n", "4\n", "0\n", "0\n"), 6},
		"lendable":     {node("0\n", "0\n", "32\n", "8\n"), 24},
		"overdrawn":    {node("1\n", "0\n", "2\n", "8\n"), 1},
	} {
		if got, err := freeHugePages(c.node, 2<<20); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, c.want)
		}
	}
	if _, err := freeHugePages(node("x", "0", "0", "0"), 2<<20); err == nil {
		t.Error("a count that is no number was taken")
	}
	err := checkHugePages(size{memory: 1 << 45, pageBytes: 2 << 20})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "vm.nr_hugepages") {
		t.Errorf("more than any machine has: %v", err)
	}
}
