package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Version is the format that this code writes.
const Version = 1

// lockTimeout bounds the wait for another process that has the database open.
const lockTimeout = 2 * time.Second

var (
	metaBucket       = []byte("meta")
	sandboxesBucket  = []byte("sandboxes")
	containersBucket = []byte("containers")
	versionKey       = []byte("version")
)

// Store is an open database.
type Store struct {
	Sandboxes  Table[Sandbox]
	Containers Table[Container]

	db *bolt.DB
}

// Open opens the database at path and creates it where there is none.
//
// It fails with errdefs.ErrUnavailable when another process holds the file, with
// errdefs.ErrFailedPrecondition when a newer Ambipod wrote it, and with
// errdefs.ErrDataLoss when it is no intact bolt file; the file is left as it is.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of database %s: %w", path, err)
	}
	db, err := openIntact(path)
	if err != nil {
		return nil, err
	}
	return &Store{
		Sandboxes:  newTable[Sandbox](db, sandboxesBucket, "sandbox"),
		Containers: newTable[Container](db, containersBucket, "container"),
		db:         db,
	}, nil
}

// openIntact opens a database only if every page of it can be read: bolt itself looks
// at no more than the first two, and panics, or faults behind the end of a file that
// was cut, when it meets what is wrong with another.
func openIntact(path string) (db *bolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			// A panic leaves a transaction behind, for which Close would wait: the file
			// stays open, and locked, until this process ends, which it does for want of it.
			db, err = nil, openError(path, fmt.Errorf("%w: %v", bolterrors.ErrInvalid, p))
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout})
	if err != nil {
		return nil, openError(path, err)
	}
	if err := db.View(readAll); err != nil {
		return nil, errors.Join(openError(path, err), db.Close())
	}
	if err := db.View(checkVersion); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", path, err), db.Close())
	}
	if err := initialise(db); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", path, err), db.Close())
	}
	return db, nil
}

// readAll visits every page that is in use and every record. bolt's own check runs in
// a goroutine of its own, where a panic could not be caught; it comes second, when all
// can be read, and finds pages that are used twice.
func readAll(tx *bolt.Tx) error {
	err := tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
		_ = bucket.Stats()
		return bucket.ForEach(func(_, value []byte) error {
			_ = bytes.Count(value, []byte{0}) // touches it all
			return nil
		})
	})
	for wrong := range tx.Check() {
		err = errors.Join(err, fmt.Errorf("%w: %w", bolterrors.ErrInvalid, wrong))
	}
	return err
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("database %s is in use by another process, stop the other vmruntime first: %w", path, errdefs.ErrUnavailable)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return fmt.Errorf("database %s is no intact bolt file (%w), restore it or move it away to start without it: %w", path, err, errdefs.ErrDataLoss)
	default:
		return fmt.Errorf("open database %s: %w", path, err)
	}
}

// checkVersion refuses the database of a newer Ambipod; a new one has no version yet.
func checkVersion(tx *bolt.Tx) error {
	meta := tx.Bucket(metaBucket)
	if meta == nil || meta.Get(versionKey) == nil {
		return nil
	}
	raw := meta.Get(versionKey)
	version, err := strconv.Atoi(string(raw))
	if err != nil {
		return fmt.Errorf("version %q is no number: %w", raw, errdefs.ErrDataLoss)
	}
	if version > Version {
		return fmt.Errorf("version %d was written by a newer Ambipod, this one knows up to %d, upgrade it again: %w",
			version, Version, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// initialise lays out a new database. One that is complete is not written to: who has
// to refuse it for its records leaves it as it is.
func initialise(db *bolt.DB) error {
	buckets := [][]byte{metaBucket, sandboxesBucket, containersBucket}
	complete := false
	err := db.View(func(tx *bolt.Tx) error {
		missing := slices.ContainsFunc(buckets, func(name []byte) bool { return tx.Bucket(name) == nil })
		complete = !missing && tx.Bucket(metaBucket).Get(versionKey) != nil
		return nil
	})
	if err != nil || complete {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		return tx.Bucket(metaBucket).Put(versionKey, strconv.AppendInt(nil, Version, 10))
	})
}

// Close closes the database; transactions under way end first.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}
