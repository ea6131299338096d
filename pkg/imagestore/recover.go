package imagestore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// endingCorrupt marks an index that could not be read; endingBad an image file
// whose bytes are not what its name says. Both are for a person to look at.
const (
	endingCorrupt = ".corrupt"
	endingBad     = ".bad"
)

// openIndex opens the index, or rebuilds it from the image files when it is lost
// or corrupt.
func (s *Store) openIndex(ctx context.Context) error {
	path := s.paths.index()
	x, err := openIndex(path)
	if errors.Is(err, errCorrupt) {
		s.log.Error("image index is corrupt; it is rebuilt from the image files", "kept", path+endingCorrupt, "err", err)
		if err := os.Rename(path, path+endingCorrupt); err != nil {
			return fmt.Errorf("set corrupt index aside: %w", err)
		}
		x, err = openIndex(path)
	}
	if err != nil {
		return err
	}
	s.index = x
	if !x.fresh {
		return nil
	}
	if err := s.rebuild(ctx); err != nil {
		return join(err, x.close())
	}
	return nil
}

// rebuild fills a new index in one transaction, so that a crash on the way leaves
// it new. Every image is hashed: nothing else says which files are whole.
func (s *Store) rebuild(ctx context.Context) error {
	ids, err := s.dataFiles()
	if err != nil {
		return err
	}
	found := change{}
	for _, id := range ids {
		r, err := s.recognise(ctx, id)
		if errors.Is(err, errBadFile) {
			s.log.Error("image file is not whole; it is set aside", "kept", s.paths.data(id)+endingBad, "err", err)
			if err := os.Rename(s.paths.data(id), s.paths.data(id)+endingBad); err != nil {
				return fmt.Errorf("set bad image aside: %w", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		s.log.Info("image was found again", "id", id, "names", strings.Join(r.Names, " "))
		found.put = append(found.put, r)
	}
	dropStaleNames(found.put)
	return s.index.apply(found)
}

// recognise makes the record of an image file from its description, or, without
// one, from its content; its names are lost then.
func (s *Store) recognise(ctx context.Context, id string) (*record, error) {
	file, err := os.Open(s.paths.data(id))
	if err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	defer func() { _ = file.Close() }() // it is only read
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	hash := sha256.New()
	reader := readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return file.Read(p)
	})
	if _, err := io.CopyBuffer(hash, reader, make([]byte, copyBuffer)); err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	if sum := hex.EncodeToString(hash.Sum(nil)); sum != id {
		return nil, classed(errBadFile, "the content of image %s has digest %s", id, sum)
	}
	r, err := s.readDescription(id)
	if r != nil || err != nil {
		return r, err
	}
	format, virtualSize, err := s.inspect(file, info.Size())
	if err != nil {
		return nil, classed(errBadFile, "image %s: %w", id, err)
	}
	return &record{ID: id, Size: info.Size(), VirtualSize: virtualSize, Format: format, PulledAt: info.ModTime().UTC()}, nil
}

// dropStaleNames lets each name and place stay with the image that was pulled
// last. Descriptions can disagree when a crash came between writing two.
func dropStaleNames(records []*record) {
	names, origins := map[string]*record{}, map[string]*record{}
	for _, r := range records {
		for _, name := range r.Names {
			if other := names[name]; other == nil || r.PulledAt.After(other.PulledAt) {
				names[name] = r
			}
		}
		for key := range r.Origins {
			if other := origins[key]; other == nil || r.PulledAt.After(other.PulledAt) {
				origins[key] = r
			}
		}
	}
	for _, r := range records {
		for _, name := range r.Names {
			if names[name] != r {
				r.Names = withoutName(r.Names, name)
			}
		}
		for key := range r.Origins {
			if origins[key] != r {
				delete(r.Origins, key)
			}
		}
	}
}

// sweep makes files and index agree after a crash. The index counts: what it does
// not know is removed, if its name says that it is ours.
func (s *Store) sweep() error {
	if err := s.dropPartials(partialLifetime); err != nil {
		return err
	}
	ids, err := s.dataFiles()
	if err != nil {
		return err
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	present := map[string]bool{}
	for _, id := range ids {
		present[id] = true
		if s.index.byID(id) == nil {
			s.log.Info("image file that was never completed, or already removed, is erased", "id", id)
			if err := s.eraseLocked(id); err != nil {
				return err
			}
		}
	}
	if err := s.sweepRecords(present); err != nil {
		return err
	}
	return s.sweepDescriptions()
}

// sweepRecords drops images whose file somebody else removed, and mends descriptions.
func (s *Store) sweepRecords(present map[string]bool) error {
	for _, r := range s.index.all() {
		if !present[r.ID] {
			s.log.Error("image file has vanished; the image is dropped", "id", r.ID, "names", strings.Join(r.Names, " "))
			if err := s.dropLocked(change{drop: []string{r.ID}}); err != nil {
				return err
			}
			continue
		}
		described, err := s.readDescription(r.ID)
		if err != nil {
			return err
		}
		if described == nil || !described.equal(r) {
			if err := s.writeDescription(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepDescriptions removes descriptions of images that do not exist, and what
// an interrupted write left.
func (s *Store) sweepDescriptions() error {
	entries, err := os.ReadDir(s.paths.describeDir())
	if err != nil {
		return fmt.Errorf("sweep descriptions: %w", err)
	}
	for _, entry := range entries {
		id, ours := strings.CutSuffix(entry.Name(), ".json")
		if ours && s.index.byID(id) != nil {
			continue
		}
		if err := removeFile(s.paths.describeDir() + "/" + entry.Name()); err != nil {
			return fmt.Errorf("sweep descriptions: %w", err)
		}
	}
	return nil
}

// dataFiles lists the image files by ID. Others are not ours and stay.
func (s *Store) dataFiles() ([]string, error) {
	entries, err := os.ReadDir(s.paths.dataDir())
	if err != nil {
		return nil, fmt.Errorf("list image files: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		switch {
		case idPattern.MatchString(entry.Name()) && entry.Type().IsRegular():
			ids = append(ids, entry.Name())
		case !strings.HasSuffix(entry.Name(), endingBad):
			s.log.Warn("something that is no image lies in the image folder", "file", entry.Name())
		}
	}
	return ids, nil
}
