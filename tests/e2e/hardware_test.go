//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/node"
)

// asQEMUSays asks a VM's QEMU by its monitor for people.
func asQEMUSays(t *testing.T, n *node.Node, p *pod, command string) string {
	t.Helper()
	_, id, _ := strings.Cut(p.id, ".")
	name := "ambipod-" + id[:12] + "-" + p.container.GetMetadata().GetName()
	out, err := exec.CommandContext(deadline(t), "virsh", "--connect", n.LibvirtURI(), "qemu-monitor-command", "--hmp", name, command).CombinedOutput()
	if err != nil {
		t.Fatalf("ask QEMU %q: %v: %s", command, err, out)
	}
	return string(out)
}

// hardwareReport tells what the guest finds, in the pod's log.
const hardwareReport = `#!/bin/sh
{
  echo "serial=$(cat /sys/class/dmi/id/product_serial)"
  echo "uuid=$(cat /sys/class/dmi/id/product_uuid)"
  echo "cpus=$(grep -c ^processor /proc/cpuinfo)"
  echo "queues=$(ls /sys/class/net/eth0/queues | grep -c rx-)"
  echo "report"" complete"
} >/dev/console
`

// TestEquippedVM boots a VM with a TPM, a watchdog and two CPUs on the newer chipset.
// Its network card has two queues, over which it gets its address.
func TestEquippedVM(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.container.Linux.Resources.CpuQuota = 200000
	p.config.Annotations = map[string]string{
		"vm.ambipod.io/machine": "q35", "vm.ambipod.io/tpm": "2.0", "vm.ambipod.io/watchdog": "reset", "vm.ambipod.io/serial-number": "machine-7",
		"vm.ambipod.io/system-uuid": "53008994-44c0-4017-ad44-9c49758083da", "vm.ambipod.io/user-data-script": hardwareReport,
	}
	must(t, p.tryRun(t))
	lines, err := node.WaitPodLog(deadline(t), p.logPath(), "report complete")
	if err != nil {
		t.Fatal(err)
	}
	log := fmt.Sprint(lines)
	for _, line := range []string{"serial=machine-7", "uuid=53008994-44c0-4017-ad44-9c49758083da", "cpus=2", "queues=2"} {
		if !strings.Contains(log, line) {
			t.Errorf("the guest does not report %q", line)
		}
	}
	if said := asQEMUSays(t, n, p, "info tpm"); !strings.Contains(said, "tpm-crb") {
		t.Errorf("QEMU's TPM: %s", said)
	}
	names := map[string]string{} // of programs in the control group, and their users
	for _, pid := range membersOf(t, n, p.id) {
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		must(t, err)
		fields := strings.Fields(string(status))
		_, users, _ := strings.Cut(string(status), "\nUid:")
		names[fields[1]] = strings.Fields(users)[1]
	}
	if names["swtpm"] == "" || names["swtpm"] == "0" || names["swtpm"] != names["qemu-system-x86"] {
		t.Errorf("programs in the pod's control group, and their users: %v, want swtpm and QEMU of the same unprivileged one", names)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
}

// TestUEFIFirmware starts a VM whose disk has nothing for UEFI: the firmware says so.
func TestUEFIFirmware(t *testing.T) {
	n := criNode(t)
	c := dial(t, n)
	c.pull(t, vmKind)
	p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
	t.Cleanup(func() { p.removeAtEnd(t) })
	p.config.Annotations = map[string]string{"vm.ambipod.io/firmware": "uefi"}
	must(t, p.tryRun(t))
	if _, err := node.WaitPodLog(deadline(t), p.logPath(), "BdsDxe: "); err != nil {
		t.Fatal(err)
	}
	p.removeAtEnd(t)
	nothingLeft(t, n)
}

// TestAbilities: people can see what a node has.
func TestAbilities(t *testing.T) {
	n := criNode(t)
	eventually(t, "vmruntime knows what VMs can have", func(ctx context.Context) error {
		status, err := dialSocket(t, n, n.VMRuntimeSocket()).Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		if got, want := status.GetInfo()["abilities"], `{"uefi":true,"secureBoot":true,"tpm":true}`; got != want {
			return fmt.Errorf("it says %s, want %s", got, want)
		}
		return nil
	})
}
