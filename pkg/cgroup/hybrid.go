package cgroup

import (
	"errors"
	"os"
	"path"
	"strconv"

	"github.com/containerd/cgroups/v3"
)

// hybridMount is where version 2 is beside version 1, without controllers.
const hybridMount = mountpoint + "/unified"

// addHybrid moves a process within the tree that version 2 has on a hybrid machine, to
// the group or what there is of the way to it. The process would otherwise stay with
// whoever started it, perhaps a container, which could not be removed before it ends.
func addHybrid(group string, pid int) error {
	if cgroups.Mode() != cgroups.Hybrid {
		return nil
	}
	for dir := path.Join("/", group); ; dir = path.Dir(dir) {
		err := os.WriteFile(path.Join(hybridMount, dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if !errors.Is(err, os.ErrNotExist) || dir == "/" {
			return err
		}
	}
}
