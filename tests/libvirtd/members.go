package libvirtd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/ambipod/ambipod/tests/process"
)

// members lists the processes in the instance's mount namespaces except its
// virtlogd, which must go on logging until its writers have ended.
func (i *Instance) members() ([]process.Process, error) {
	run, err := os.Stat(filepath.Join(i.Dir, "run"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of libvirtd: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes of libvirtd: %w", err)
	}
	var found []process.Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == i.Virtlogd.PID {
			continue
		}
		p, err := process.Find(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		seen, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/libvirt", pid))
		if err == nil && os.SameFile(run, seen) {
			found = append(found, p)
		}
	}
	return found, nil
}
