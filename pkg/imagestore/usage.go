package imagestore

import (
	"fmt"

	"github.com/ambipod/ambipod/pkg/diskusage"
)

// Usage is what the store's own files take of their file system, partial downloads
// and images that are only kept for their holders included.
func (s *Store) Usage() (diskusage.Usage, error) {
	used, err := diskusage.Measure(s.paths.dir)
	if err != nil {
		return diskusage.Usage{}, fmt.Errorf("image store: %w", err)
	}
	return used, nil
}
