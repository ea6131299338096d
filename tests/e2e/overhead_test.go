//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// declaredOverhead is what docs/vm-pods.md has people declare for QEMU itself, in MiB.
const declaredOverhead = 192

// fillMemory takes all of the guest's memory but what its kernel needs to say so.
const fillMemory = `#cloud-config
runcmd:
- - sh
  - -c
  - |
    echo 1024 >/proc/sys/vm/min_free_kbytes
    mount -t tmpfs -o size=100%,nr_inodes=9 none /mnt
    free=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
    dd if=/dev/zero of=/mnt/all bs=64k count=$(( (free - 8192) / 64 ))
    echo "memory ""filled"
`

// TestOverheadSuffices measures what QEMU needs beside its guest's memory: the peak of
// its resident memory less the guest's, when the guest has booted and then touched all
// that it has. The translated code, which is part of it under software emulation, is
// told apart, because it goes on growing to the size of its cache.
func TestOverheadSuffices(t *testing.T) {
	n := criNode(t)
	for _, mebibytes := range []int64{128, 256, 512, 1024} {
		t.Run(fmt.Sprintf("%d MiB", mebibytes), func(t *testing.T) {
			t.Parallel()
			c := dial(t, n)
			c.pull(t, vmKind)
			p := &pod{client: c, config: podConfig(t, n, vmKind), container: containerConfig(vmKind), kind: vmKind}
			t.Cleanup(func() { p.removeAtEnd(t) })
			p.config.Annotations = map[string]string{"vm.ambipod.io/user-data": fillMemory}
			p.container.Linux.Resources.MemoryLimitInBytes = mebibytes << 20
			must(t, p.tryRun(t))
			if _, err := node.WaitPodLog(deadline(t), p.logPath(), "memory filled"); err != nil {
				t.Fatal(err)
			}
			code, cache := translatedCode(t, n, p)
			over := peakOfQEMU(t, n, p) - float64(mebibytes)
			t.Logf("QEMU took %.1f MiB beside the guest's %d MiB, of which %.1f MiB are translated code (at most %.0f MiB)", over, mebibytes, code, cache)
			if worst := over - code + cache; worst > declaredOverhead {
				t.Errorf("QEMU may come to need %.1f MiB beside the guest's memory, more than the %d MiB that pods are told to declare", worst, declaredOverhead)
			}
		})
	}
}

// peakOfQEMU is the peak, in MiB, of the resident memory of a VM's QEMU (proc_pid_status(5)).
func peakOfQEMU(t *testing.T, n *node.Node, p *pod) float64 {
	t.Helper()
	for _, pid := range membersOf(t, n, p.id) {
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		must(t, err)
		if !strings.HasPrefix(string(status), "Name:\tqemu") {
			continue
		}
		_, line, _ := strings.Cut(string(status), "VmHWM:")
		kibibytes, err := strconv.Atoi(strings.Fields(line)[0])
		must(t, err)
		return float64(kibibytes) / 1024
	}
	t.Fatal("no QEMU is in the pod's control group")
	return 0
}

var jitSize = regexp.MustCompile(`gen code size\s+(\d+)/(\d+)`)

// translatedCode is how large the translated code of a guest is, and how large it can
// become, in MiB.
func translatedCode(t *testing.T, n *node.Node, p *pod) (size, limit float64) {
	t.Helper()
	_, id, _ := strings.Cut(p.id, ".")
	name := "ambipod-" + id[:12] + "-" + p.container.GetMetadata().GetName()
	out, err := exec.CommandContext(deadline(t), "virsh", "--connect", n.LibvirtURI(), "qemu-monitor-command", "--hmp", name, "info jit").CombinedOutput()
	if err != nil {
		t.Fatalf("ask QEMU for its translated code: %v: %s", err, out)
	}
	found := jitSize.FindStringSubmatch(string(out))
	if found == nil { // with KVM there is none
		return 0, 0
	}
	used, err := strconv.ParseFloat(found[1], 64)
	must(t, err)
	most, err := strconv.ParseFloat(found[2], 64)
	must(t, err)
	return used / (1 << 20), most / (1 << 20)
}
