package imagestore

import (
	"context"
	"fmt"
)

// Remove removes an image with all its names, whichever of them, or the ID, is
// given. An image that is not here is no error. One that a VM uses disappears
// from all lists now, and its bytes are freed when its last holder releases it.
// A running download is never touched.
func (s *Store) Remove(_ context.Context, nameOrID string) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	r := s.find(nameOrID)
	if r == nil {
		return nil
	}
	if len(s.index.held(r.ID)) > 0 {
		return s.hideLocked(r)
	}
	if err := s.dropLocked(change{drop: []string{r.ID}}); err != nil {
		return fmt.Errorf("remove image %q: %w", nameOrID, err)
	}
	s.log.Info("image was removed", "image", nameOrID, "id", r.ID)
	return nil
}

// hideLocked takes all names from an image that is in use.
func (s *Store) hideLocked(r *record) error {
	hidden := r.clone()
	hidden.Removed, hidden.Names, hidden.Digests, hidden.Origins = true, nil, nil, nil
	if err := s.index.apply(change{put: []*record{hidden}}); err != nil {
		return fmt.Errorf("hide image %s: %w", r.ID, err)
	}
	if err := s.reached(stepHidden); err != nil {
		return err
	}
	s.log.Info("image was removed; its file stays until the last VM that uses it is gone", "id", r.ID)
	if err := s.writeDescription(hidden); err != nil {
		return fmt.Errorf("hide image %s: %w", r.ID, err)
	}
	return nil
}

// dropLocked applies a change and removes the files of the images it drops. When
// it is interrupted after the index was written, the next start goes on.
func (s *Store) dropLocked(c change) error {
	if err := s.index.apply(c); err != nil {
		return err
	}
	if err := s.reached(stepForgotten); err != nil {
		return err
	}
	var errs []error
	for _, id := range c.drop {
		errs = append(errs, s.eraseLocked(id))
	}
	return join(errs...)
}

// eraseLocked removes the files of an image that the index does not know.
func (s *Store) eraseLocked(id string) error {
	if err := removeFile(s.paths.describe(id)); err != nil {
		return fmt.Errorf("erase image %s: %w", id, err)
	}
	if err := s.reached(stepUndescribed); err != nil {
		return err
	}
	if err := removeFile(s.paths.data(id)); err != nil {
		return fmt.Errorf("erase image %s: %w", id, err)
	}
	return s.reached(stepErased)
}
