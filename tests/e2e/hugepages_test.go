//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ambipod/ambipod/tests/node"
)

// hugePages is how many the tuned node has: those of the VM of examples/hugepages.yaml.
const hugePages = 64

// TestHugePagesUnderKubelet boots the example's VM on a node that has reserved huge pages:
// all of the guest's memory is of them.
func TestHugePagesUnderKubelet(t *testing.T) {
	n := tunedNode(t)
	pod := examplePod(t, "hugepages.yaml", "huge", node.VMImage)
	pod.Spec.RuntimeClassName = nil // only an API server knows runtime classes
	pod.Annotations = map[string]string{"vm.ambipod.io/target-runtime": "vm"}
	apply(t, n, pod)
	running := waitBooted(t, n, "huge", vmKind.ready)

	taken := 0
	for _, pid := range membersOfGroup(t, groupOf(t, n, running, "container").memory) {
		taken += hugeBytes(t, pid)
	}
	limit := pod.Spec.Containers[0].Resources.Limits["hugepages-2Mi"]
	if want := int(limit.Value()); taken != want {
		t.Errorf("the VM takes %d bytes of huge pages, want %d", taken, want)
	}
	eventually(t, "the guest tells its memory", func(ctx context.Context) error {
		out, err := execIn(ctx, n, running, "grep MemTotal /proc/meminfo")
		if err != nil {
			return err
		}
		var kib int64
		if _, err := fmt.Sscanf(out, "MemTotal: %d kB", &kib); err != nil || kib<<10 > limit.Value() || kib<<10 < limit.Value()/2 {
			t.Errorf("the guest has %q, want most of %s", out, limit.String())
		}
		return nil
	})
	must(t, n.Delete("huge"))
	nothingLeft(t, n)
}

// membersOfGroup are the processes of a control group.
func membersOfGroup(t *testing.T, folder string) []string {
	t.Helper()
	pids, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	must(t, err)
	return strings.Fields(string(pids))
}

var hugeLine = regexp.MustCompile(`(?m)^(?:Shared|Private)_Hugetlb: +(\d+) kB$`)

// hugeBytes is how much memory of huge pages a process has.
func hugeBytes(t *testing.T, pid string) int {
	t.Helper()
	maps, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	must(t, err)
	sum := 0
	for _, line := range hugeLine.FindAllStringSubmatch(string(maps), -1) {
		kib, err := strconv.Atoi(line[1])
		must(t, err)
		sum += kib << 10
	}
	return sum
}

// addHugePages has this machine reserve more huge pages than it does now, or fewer.
func addHugePages(more int) error {
	setting, err := os.OpenFile("/proc/sys/vm/nr_hugepages", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("reserve huge pages: %w", err)
	}
	defer setting.Close()
	if err := syscall.Flock(int(setting.Fd()), syscall.LOCK_EX); err != nil { // other runs add theirs
		return fmt.Errorf("reserve huge pages: %w", err)
	}
	had, err := reservedHugePages(setting)
	if err != nil {
		return err
	}
	if _, err := setting.WriteAt(strconv.AppendInt(nil, int64(had+more), 10), 0); err != nil {
		return fmt.Errorf("reserve huge pages: %w", err)
	}
	have, err := reservedHugePages(setting)
	if err == nil && have != had+more {
		_, undone := setting.WriteAt(strconv.AppendInt(nil, int64(had), 10), 0)
		err = errors.Join(undone, fmt.Errorf("the machine's free memory is in too small pieces for %d huge pages, only %d were to be had; try again later", more, have-had))
	}
	return err
}

func reservedHugePages(setting *os.File) (int, error) {
	raw := make([]byte, 32)
	n, err := setting.ReadAt(raw, 0)
	if n == 0 {
		return 0, fmt.Errorf("reserve huge pages: %w", err)
	}
	return strconv.Atoi(string(bytes.TrimSpace(raw[:n])))
}
