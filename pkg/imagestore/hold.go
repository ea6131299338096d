package imagestore

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// Hold keeps the file of an image for a holder (the ID of a VM's container) until
// the holder releases it, across restarts and even if the image is removed. The
// image is given by its ID. Holding twice is holding once.
func (s *Store) Hold(id, holder string) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	id, _ = parseID(id)
	r := s.index.byID(id)
	if r == nil || r.Removed || holder == "" {
		return classed(errdefs.ErrNotFound, "hold image %q for %q", id, holder)
	}
	ids := addName(s.index.heldBy(holder), r.ID)
	if err := s.index.apply(change{holders: map[string][]string{holder: ids}}); err != nil {
		return fmt.Errorf("hold image %s for %q: %w", r.ID, holder, err)
	}
	return nil
}

// Release ends all that a holder holds, and frees what was removed meanwhile. A
// holder that holds nothing is no error.
func (s *Store) Release(holder string) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	ids := s.index.heldBy(holder)
	if len(ids) == 0 {
		return nil
	}
	c := change{holders: map[string][]string{holder: nil}}
	for _, id := range ids {
		if r := s.index.byID(id); r != nil && r.Removed && len(s.index.held(id)) == 1 {
			c.drop = append(c.drop, id)
		}
	}
	if err := s.dropLocked(c); err != nil {
		return fmt.Errorf("release images of %q: %w", holder, err)
	}
	return nil
}

// SetHolders says who holds which images (holder → image IDs) and forgets all
// other holders: at start-up, the owner of the VMs tells what really exists. IDs
// that the store does not have are logged and left out.
func (s *Store) SetHolders(holders map[string][]string) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	c := change{holders: map[string][]string{}}
	for _, holder := range s.index.holderNames() {
		c.holders[holder] = nil
	}
	held := map[string]bool{}
	for holder, ids := range holders {
		for _, given := range ids {
			id, _ := parseID(given)
			if s.index.byID(id) == nil {
				s.log.Error("a VM's image is missing from the store", "container", holder, "id", given)
				continue
			}
			held[id] = true
			c.holders[holder] = addName(c.holders[holder], id)
		}
	}
	for _, r := range s.index.all() {
		if r.Removed && !held[r.ID] {
			c.drop = append(c.drop, r.ID)
		}
	}
	slices.Sort(c.drop)
	if err := s.dropLocked(c); err != nil {
		return fmt.Errorf("set holders of images: %w", err)
	}
	return nil
}
