package criserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hugePageSizes are the kernel's, by the names that kubelet gives them in the CRI.
var hugePageSizes = map[string]int64{"64KB": 64 << 10, "2MB": 2 << 20, "32MB": 32 << 20, "512MB": 512 << 20, "1GB": 1 << 30}

// hugePagesOf returns the huge pages that a container asks for: their size and how
// much memory they make; zeros if it asks for none.
func hugePagesOf(resources *runtimeapi.LinuxContainerResources) (pageBytes, memory int64, err error) {
	for _, limit := range resources.GetHugepageLimits() {
		if limit.GetLimit() == 0 {
			continue // kubelet names every size that the node has
		}
		size, known := hugePageSizes[limit.GetPageSize()]
		switch {
		case !known:
			return 0, 0, fmt.Errorf("huge pages of the size %q are unknown, those of %s are known: %w", limit.GetPageSize(), "64KB, 2MB, 32MB, 512MB and 1GB", errdefs.ErrInvalidArgument)
		case pageBytes != 0:
			return 0, 0, fmt.Errorf("the container asks for huge pages of two sizes and the memory of a VM has one: %w", errdefs.ErrInvalidArgument)
		case limit.GetLimit()%uint64(size) != 0 || limit.GetLimit() > maxMemory: //nolint:gosec // sizes are positive
			return 0, 0, fmt.Errorf("%d bytes are no whole number of huge pages of %s: %w", limit.GetLimit(), limit.GetPageSize(), errdefs.ErrInvalidArgument)
		}
		pageBytes, memory = size, int64(limit.GetLimit()) //nolint:gosec // checked above
	}
	return pageBytes, memory, nil
}

// checkHugePages refuses a VM for whose memory this machine has too few huge pages.
func checkHugePages(wanted size) error {
	if wanted.pageBytes == 0 {
		return nil
	}
	free, err := freeHugePages(os.DirFS("/sys/kernel/mm/hugepages"), wanted.pageBytes)
	if err != nil {
		return err
	}
	if need := wanted.memory / wanted.pageBytes; free < need {
		return fmt.Errorf("the VM needs %d huge pages of %d KiB and the node has %d free, reserve more in its sysctl vm.nr_hugepages: %w",
			need, wanted.pageBytes>>10, free, errdefs.ErrResourceExhausted)
	}
	return nil
}

// freeHugePages reads how many pages of a size can still be had (kernel, Documentation/
// admin-guide/mm/hugetlbpage.rst): those that are free and not promised, and what the
// kernel may take from its other memory.
func freeHugePages(kernel fs.FS, pageBytes int64) (int64, error) {
	counts := map[string]int64{}
	for _, name := range []string{"free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages"} {
		text, err := fs.ReadFile(kernel, fmt.Sprintf("hugepages-%dkB/%s", pageBytes>>10, name))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil // no pages of this size
		}
		if err != nil {
			return 0, fmt.Errorf("count huge pages: %w", err)
		}
		if counts[name], err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return 0, fmt.Errorf("count huge pages: %w", err)
		}
	}
	return counts["free_hugepages"] - counts["resv_hugepages"] + max(0, counts["nr_overcommit_hugepages"]-counts["surplus_hugepages"]), nil
}
