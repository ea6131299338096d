//go:build integration

package libvirttools_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// commandLine is what the guest's QEMU was started with.
func (g *guest) commandLine(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", itoa(g.process(t).PID), "cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\x00", " ")
}

// wantWords looks for parts of QEMU's command line.
func (g *guest) wantWords(t *testing.T, words ...string) {
	t.Helper()
	line := g.commandLine(t)
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("QEMU runs without %q: %s", word, line)
		}
	}
}

// ask asks the guest's QEMU by QMP.
func ask[T any](t *testing.T, g *guest, command string) T {
	t.Helper()
	text := virsh(t, daemon(t), "qemu-monitor-command", g.Name, fmt.Sprintf(`{"execute":%q}`, command))
	var answer struct{ Return T }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatalf("QEMU answers %s: %v", text, err)
	}
	return answer.Return
}

// remove takes a domain away before the test's end.
func (g *guest) remove(t *testing.T, c *libvirttools.Client) {
	t.Helper()
	if err := c.Destroy(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
	if err := c.Undefine(deadline(t), g.UUID); err != nil {
		t.Fatal(err)
	}
}

// TestUEFI: the firmware itself says on the serial port that it is UEFI's. Its
// variables are a file of the VM's own, which goes with the VM.
func TestUEFI(t *testing.T) {
	for _, test := range []struct {
		name     string
		machine  string
		firmware libvirttools.Firmware
	}{
		{"pc", libvirttools.MachinePC, libvirttools.Firmware{UEFI: true}},
		{"secure", libvirttools.MachineQ35, libvirttools.Firmware{UEFI: true, SecureBoot: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := client(t)
			g := describeGuest(t)
			g.Machine, g.Firmware, g.MemoryBytes = test.machine, test.firmware, 128<<20
			g.Firmware.Variables = filepath.Join(filepath.Dir(g.overlay), "firmware.vars")
			define(t, c, g)
			if err := c.Start(deadline(t), g.UUID); err != nil {
				t.Fatal(err)
			}
			if owner(t, g.Firmware.Variables) == 0 {
				t.Error("QEMU's user does not own the firmware's variables")
			}
			// It keeps the guest from changing the keys behind the firmware's back.
			if secure := strings.Contains(g.commandLine(t), "driver=cfi.pflash01,property=secure,value=on"); secure != test.firmware.SecureBoot {
				t.Errorf("the firmware's variables are protected: %v, want %v: %s", secure, test.firmware.SecureBoot, g.commandLine(t))
			}
			eventually(t, "the firmware to look for something to boot", func() bool { return strings.Contains(g.console(t), "BdsDxe: ") })
			g.remove(t, c)
			if _, err := os.Stat(g.Firmware.Variables); !os.IsNotExist(err) {
				t.Errorf("the firmware's variables are still there: %v", err)
			}
		})
	}
}

func TestAbilities(t *testing.T) {
	for machine, want := range map[string]libvirttools.Abilities{
		libvirttools.MachinePC:  {UEFI: true},
		libvirttools.MachineQ35: {UEFI: true, SecureBoot: true},
	} {
		got, err := client(t).Abilities(deadline(t), emulator, libvirttools.AccelTCG, machine)
		// Whether secure boot is said of a machine without it is libvirt's choice.
		if err != nil || got.UEFI != want.UEFI || want.SecureBoot && !got.SecureBoot || !slices.Contains(got.CPUModels, "Nehalem") {
			t.Errorf("abilities of %s: %+v, %v, want %+v; is the Debian package ovmf installed?", machine, got, err, want)
		}
	}
}

// TestHardware boots a guest from SATA with everything that a VM can have, on both
// machine types, and asks QEMU what came of it.
func TestHardware(t *testing.T) {
	for _, machine := range []string{libvirttools.MachinePC, libvirttools.MachineQ35} {
		t.Run(machine, func(t *testing.T) {
			c := client(t)
			g := describeGuest(t)
			g.Machine, g.LocalTime, g.Serial, g.Watchdog = machine, true, "machine-7", libvirttools.WatchdogPoweroff
			g.Screen, g.VCPUs, g.CPUModel = true, 2, "Penryn"
			g.TPMSocket = startTPM(t, g)
			for i := range g.Disks {
				g.Disks[i].Bus = libvirttools.BusSATA
			}
			define(t, c, g)
			g.boot(t, c)
			checkHardware(t, g)
			virsh(t, daemon(t), "define", "--validate", writeFile(t, xmlOf(t, g.Domain)))
		})
	}
}

func checkHardware(t *testing.T, g *guest) {
	t.Helper()
	g.wantWords(t, "-machine pc-", "-cpu Penryn", "-smp 2,", "-smbios type=1,serial=machine-7", "-uuid "+g.UUID, "-rtc base=localtime",
		`"driver":"ide-hd"`, `"driver":"ide-cd"`, "-watchdog-action poweroff", "memory-backend=pc.ram", `"free-page-reporting":true`)
	if tpms := ask[[]struct{ Model string }](t, g, "query-tpm"); len(tpms) != 1 || tpms[0].Model != "tpm-crb" {
		t.Errorf("QEMU's TPMs are %+v", tpms)
	}
	screen := ask[struct{ Family, Host, Service string }](t, g, "query-vnc")
	if screen.Family != "unix" || screen.Service == "" || screen.Host != "" {
		t.Errorf("the screen is served as %+v, want a unix socket", screen)
	}
	found := map[string]bool{}
	for _, bus := range ask[[]struct {
		Devices []struct {
			Slot, Function int
			ID             string `json:"qdev_id"`
		}
	}](t, g, "query-pci") {
		for _, device := range bus.Devices {
			found[device.ID] = true
			if device.Slot >= libvirttools.FirstNICSlot && device.Slot != 31 {
				t.Errorf("device %q is in slot %d, which is vmwrapper's", device.ID, device.Slot)
			}
		}
	}
	for _, id := range []string{"watchdog0", "balloon0", "rng0", "scsi0", "virtio-serial0", "video0"} {
		if !found[id] {
			t.Errorf("QEMU has no PCI device %s: %v", id, found)
		}
	}
}

// TestProcessorAsDescribed: what VirtletLibvirtCPUSetting says reaches QEMU.
func TestProcessorAsDescribed(t *testing.T) {
	c := client(t)
	g := describeGuest(t)
	g.CPU = &libvirttools.CPU{
		Mode: "custom", Match: "exact", Check: "none", Model: "core2duo", Fallback: "forbid",
		Features: []libvirttools.CPUFeature{{Policy: "disable", Name: "ssse3"}, {Policy: "require", Name: "sse4.1"}},
	}
	define(t, c, g)
	g.boot(t, c)
	g.wantWords(t, "-cpu core2duo,ssse3=off,sse4.1=on")
}

// startTPM starts the emulator of a TPM; it ends with the guest's QEMU.
func startTPM(t *testing.T, g *guest) string {
	t.Helper()
	dir := filepath.Dir(g.overlay)
	state, socket := filepath.Join(dir, "tpm"), filepath.Join(dir, "tpm.sock")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "swtpm", "socket", "--tpm2", "--terminate",
		"--tpmstate", "dir="+state, "--ctrl", "type=unixio,path="+socket+",mode=0666")
	if err := cmd.Start(); err != nil {
		t.Fatalf("install the Debian package swtpm: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the test's context has ended it
	eventually(t, "the TPM to listen", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return socket
}

// TestHugePages has this machine lend huge pages for as long as it takes.
func TestHugePages(t *testing.T) {
	const pageBytes = 2 << 20
	c := client(t)
	g := describeGuest(t)
	g.HugePageBytes = pageBytes
	lendHugePages(t, int(g.MemoryBytes/pageBytes))
	define(t, c, g)
	g.boot(t, c)
	g.wantWords(t, `"qom-type":"memory-backend-memfd","id":"pc.ram"`, `"hugetlb":true,"hugetlbsize":2097152`)
	used, err := os.ReadFile(filepath.Join("/proc", itoa(g.process(t).PID), "smaps_rollup"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(used), "Private_Hugetlb:       0 kB") && strings.Contains(string(used), "Shared_Hugetlb:        0 kB") {
		t.Errorf("QEMU uses no huge page:\n%s", used)
	}
}

// lendHugePages lets that many pages more be taken than now, until the test ends. Only
// one test at a time may, on the whole machine.
func lendHugePages(t *testing.T, pages int) {
	t.Helper()
	setting, err := os.OpenFile("/proc/sys/vm/nr_overcommit_hugepages", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("the kernel has no huge pages, or this is not root: %v", err)
	}
	t.Cleanup(func() { setting.Close() })
	if err := syscall.Flock(int(setting.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	before := make([]byte, 32)
	n, err := setting.Read(before)
	if err != nil {
		t.Fatal(err)
	}
	had, err := strconv.Atoi(strings.TrimSpace(string(before[:n])))
	if err != nil {
		t.Fatal(err)
	}
	set := func(value int) {
		if _, err := setting.WriteAt([]byte(itoa(value)), 0); err != nil {
			t.Errorf("set the number of huge pages that may be taken: %v", err)
		}
	}
	set(had + pages)
	t.Cleanup(func() { set(had) })
}
