package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// partialLifetime is how long a download that nobody continues is kept.
const partialLifetime = 72 * time.Hour

// Endings of the files of a partial download, after its key.
const (
	endingBytes     = ".part"
	endingValidator = ".json"
	endingUnpacked  = ".unpacked"
)

// validator is how a server lets us ask whether its content is still the same.
type validator struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
	// Strong says that equal validators mean equal bytes, so that a download can
	// be continued.
	Strong bool  `json:"strong"`
	Total  int64 `json:"total"` // bytes; -1 if the server did not say
}

// partial is the file of a download that may be continued after a broken
// connection or a restart: the bytes as they came, and the validator they came
// with. One flight at a time uses it.
type partial struct {
	base      string // path without ending
	file      *os.File
	have      int64
	validator validator

	// background runs what nobody needs to wait for; nil runs it at once.
	background func(func())
}

// openPartial opens what an earlier pull from the same place left, or starts anew.
func openPartial(p paths, key string) (*partial, error) {
	part := &partial{base: filepath.Join(p.partialDir(), key)}
	file, err := openPartialFile(part.base + endingBytes)
	if err != nil {
		return nil, fmt.Errorf("open partial download: %w", err)
	}
	part.file = file
	info, err := file.Stat()
	if err != nil {
		return nil, join(fmt.Errorf("open partial download: %w", err), file.Close())
	}
	part.have = info.Size()
	raw, err := os.ReadFile(part.base + endingValidator)
	if err != nil || json.Unmarshal(raw, &part.validator) != nil || !part.validator.Strong {
		if err := part.reset(); err != nil {
			return nil, join(err, file.Close())
		}
	}
	return part, nil
}

// openPartialFile gives up a file that was already protected when a crash came:
// without root's rights it cannot be written any more.
func openPartialFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileModePrivate)
	if !errors.Is(err, fs.ErrPermission) {
		return file, err
	}
	if err := removeFile(path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileModePrivate)
}

// reset forgets the bytes.
func (p *partial) reset() error {
	p.have, p.validator = 0, validator{Total: -1}
	if err := join(removeFile(p.base+endingValidator), p.file.Truncate(0)); err != nil {
		return fmt.Errorf("empty partial download: %w", err)
	}
	return nil
}

// begin notes the validator of the bytes that will follow.
func (p *partial) begin(v validator) error {
	p.validator = v
	if !v.Strong {
		return nil
	}
	raw, err := json.Marshal(v)
	if err == nil {
		err = replaceFile(p.base+endingValidator, raw)
	}
	if err != nil {
		return writeError("note validator of partial download", err)
	}
	return nil
}

func (p *partial) append(b []byte) error {
	n, err := p.file.WriteAt(b, p.have)
	p.have += int64(n)
	if err != nil {
		return writeError("write partial download", err)
	}
	return nil
}

// unpacked is where the unwrapped content of the download is written.
func (p *partial) unpacked() string { return p.base + endingUnpacked }

// close closes the file, and removes all files unless the download can be
// continued later and keep says that it should.
func (p *partial) close(keep bool) error {
	err := removeFile(p.unpacked())
	if keep && p.validator.Strong && p.have > 0 {
		return join(err, p.file.Close())
	}
	err = join(err, removeFile(p.base+endingBytes), removeFile(p.base+endingValidator))
	// The kernel frees the blocks of a file without a name when it is closed, which
	// takes a tenth of the time that unpacking took.
	free := func() { _ = p.file.Close() } // nobody will read what was written
	if p.background == nil {
		free()
	} else {
		p.background(free)
	}
	return err
}

// dropPartials removes downloads that nobody continued for a time, and all files
// of the partial folder that cannot be continued.
func (s *Store) dropPartials(unusedFor time.Duration) error {
	entries, err := os.ReadDir(s.paths.partialDir())
	if err != nil {
		return fmt.Errorf("sweep partial downloads: %w", err)
	}
	for _, entry := range entries {
		key, _, _ := strings.Cut(entry.Name(), ".")
		err := s.flights.whenIdle(key, func() error { return s.dropPartial(key, entry.Name(), unusedFor) })
		if err != nil {
			return fmt.Errorf("sweep partial downloads: %w", err)
		}
	}
	return nil
}

func (s *Store) dropPartial(key, name string, unusedFor time.Duration) error {
	if name == key+endingBytes || name == key+endingValidator {
		info, err := os.Stat(filepath.Join(s.paths.partialDir(), key+endingBytes))
		if err == nil && s.now().Sub(info.ModTime()) < unusedFor {
			return nil
		}
	}
	return removeFile(filepath.Join(s.paths.partialDir(), name))
}
