package imagestore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
)

// step is a moment between two writes, at which a crash must do no harm.
type step string

// The steps of adding an image, in order, then those of dropping one.
const (
	stepReceived  step = "received"  // all bytes are in the partial folder
	stepSealed    step = "sealed"    // QEMU may read the file, nobody may write it
	stepSynced    step = "synced"    // its bytes are on the disk
	stepPlaced    step = "placed"    // it has its final name
	stepDescribed step = "described" // its description is on the disk
	stepIndexed   step = "indexed"   // the index knows it; from here on it exists

	stepForgotten   step = "forgotten"   // the index does not know it any more
	stepUndescribed step = "undescribed" // its description is gone
	stepErased      step = "erased"      // its file is gone
	stepHidden      step = "hidden"      // in use, so that only its names are gone
)

// add judges a complete download and makes it an image of the store. Until the
// index knows it, a crash leaves nothing that the next start does not remove.
func (s *Store) add(ctx context.Context, got received, j job) (landing, error) {
	format, virtualSize, err := s.seal(ctx, got)
	if err != nil {
		return landing{}, err
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.placeLocked(got); err != nil {
		return landing{}, err
	}
	r := s.index.byID(got.id)
	if r == nil {
		r = &record{
			ID: got.id, Size: got.size, VirtualSize: virtualSize, Format: format,
			PulledAt: s.now().UTC(),
		}
	}
	digest := cmp.Or(j.manifest, got.digest)
	r = r.named(j.ref, digest)
	r.Origins[j.origin] = origin{Digest: digest}
	r.Origins[j.partial] = origin{Digest: got.digest, ETag: got.from.ETag, LastModified: got.from.LastModified}
	err = s.saveLocked(r)
	if err != nil && s.index.byID(got.id) == nil {
		err = join(err, s.eraseLocked(got.id))
	}
	return landing{id: got.id, digest: digest}, err
}

// seal judges the file and gives it its owner and mode; then it is final.
func (s *Store) seal(ctx context.Context, got received) (Format, int64, error) {
	if err := s.reached(stepReceived); err != nil {
		return "", 0, err
	}
	file, err := os.Open(got.path)
	if err != nil {
		return "", 0, fmt.Errorf("seal image: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written through it
	format, virtualSize, err := s.inspect(file, got.size)
	if err != nil {
		return "", 0, err
	}
	if err := s.protect(file); err != nil {
		return "", 0, err
	}
	if err := s.reached(stepSealed); err != nil {
		return "", 0, err
	}
	if format == FormatQCOW2 {
		if err := s.checkDisk(ctx, file); err != nil {
			return "", 0, err
		}
	}
	if err := file.Sync(); err != nil {
		return "", 0, fmt.Errorf("seal image: %w", err)
	}
	return format, virtualSize, s.reached(stepSynced)
}

// protect lets QEMU's group read the file, and nobody write it.
func (s *Store) protect(file *os.File) error {
	if s.opts.QEMU != nil {
		if err := file.Chown(os.Getuid(), s.opts.QEMU.GID); err != nil {
			return fmt.Errorf("give image to QEMU's group: %w", err)
		}
	}
	if err := file.Chmod(fileModeImage); err != nil {
		return fmt.Errorf("protect image: %w", err)
	}
	return nil
}

// placeLocked gives a sealed file its final name. If the store has the content
// already, its file stays: VMs may run on it.
func (s *Store) placeLocked(got received) error {
	path := s.paths.data(got.id)
	if s.index.byID(got.id) != nil {
		if info, err := os.Stat(path); err == nil && info.Size() == got.size {
			return nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("place image: %w", err)
		}
	}
	err := os.Rename(got.path, path)
	if err == nil {
		err = syncDir(s.paths.dataDir())
	}
	if err != nil {
		return fmt.Errorf("place image: %w", err)
	}
	if err := s.reached(stepPlaced); err != nil {
		return join(err, removeFile(path))
	}
	return nil
}

// claim gives an image that somebody else's flight brought our name, and remembers
// where it came from.
func (s *Store) claim(landed landing, j job) (landing, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	r := s.index.byID(landed.id)
	if r == nil || r.Removed {
		return landing{}, classed(errTemporary, "image %s was removed while it was pulled", landed.id)
	}
	r = r.named(j.ref, j.manifest)
	r.Origins[j.origin] = origin{Digest: j.manifest}
	landed.digest = j.manifest
	return landed, s.saveLocked(r)
}

// addName gives an image that is already here one more name.
func (s *Store) addName(landed landing, ref Reference) (*record, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	r := s.index.byID(landed.id)
	if r == nil || r.Removed {
		return nil, classed(errdefs.ErrNotFound, "image %s is gone", landed.id)
	}
	r = r.named(ref, landed.digest)
	return r, s.saveLocked(r)
}

// named is the record with one more name, and visible.
func (r *record) named(ref Reference, digest string) *record {
	r = r.clone()
	if ref.Digest == "" {
		r.Names = addName(r.Names, ref.String())
	}
	r.Digests = addName(r.Digests, ref.withDigest(digest))
	r.Removed = false
	return r
}

// saveLocked writes a record to the disk, and takes its names and places from the
// images that had them before.
func (s *Store) saveLocked(r *record) error {
	if stored := s.index.byID(r.ID); stored != nil && stored.equal(r) {
		return nil
	}
	losers := s.losers(r)
	if err := s.writeDescription(r); err != nil {
		return err
	}
	if err := s.reached(stepDescribed); err != nil {
		return err
	}
	if err := s.index.apply(change{put: append(losers, r)}); err != nil {
		return err
	}
	for _, loser := range losers {
		// The index counts; the next start mends a description that differs.
		if err := s.writeDescription(loser); err != nil {
			s.log.Warn("description of an image is out of date until the next start", "id", loser.ID, "err", err)
		}
	}
	return s.reached(stepIndexed)
}

// losers are the records of other images without the names and places of r.
func (s *Store) losers(r *record) []*record {
	drafts := map[string]*record{}
	draft := func(of *record) *record {
		if drafts[of.ID] == nil {
			drafts[of.ID] = of.clone()
		}
		return drafts[of.ID]
	}
	for _, name := range r.Names {
		if other := s.index.byRef(name); other != nil && other.ID != r.ID {
			d := draft(other)
			d.Names = withoutName(d.Names, name)
		}
	}
	for key := range r.Origins {
		if other := s.index.byOrigin(key); other != nil && other.ID != r.ID {
			delete(draft(other).Origins, key)
		}
	}
	return slices.Collect(maps.Values(drafts))
}
