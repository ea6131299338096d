package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// maxDescription is the largest description file that is read, in bytes.
const maxDescription = 1 << 20

// writeDescription stores a record beside the index.
func (s *Store) writeDescription(r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("describe image %s: %w", r.ID, err)
	}
	if err := replaceFile(s.paths.describe(r.ID), raw); err != nil {
		return writeError("describe image "+r.ID, err)
	}
	return nil
}

// readDescription returns nil without error when there is none, or none that
// can be read as one.
func (s *Store) readDescription(id string) (*record, error) {
	path := s.paths.describe(id)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no description is not an error, see above
	}
	if err != nil {
		return nil, fmt.Errorf("describe image %s: %w", id, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxDescription {
		return nil, nil //nolint:nilnil // see above
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("describe image %s: %w", id, err)
	}
	r := new(record)
	if json.Unmarshal(raw, r) != nil || r.ID != id {
		return nil, nil //nolint:nilerr,nilnil // see above
	}
	return r, nil
}

// replaceFile writes a private file such that a crash leaves the old or the new
// content.
func replaceFile(path string, content []byte) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = join(err, removeFile(temp.Name()))
		}
	}()
	_, err = temp.Write(content)
	err = join(err, temp.Sync(), temp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// removeFile removes a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the renames in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return join(dir.Sync(), dir.Close())
}
