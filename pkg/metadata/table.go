package metadata

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Table is a set of records of one type, each stored as JSON under its ID.
type Table[T any] struct {
	db     *bolt.DB
	bucket []byte
	kind   string // for error texts: "sandbox"
	memo   *memo[T]
}

func newTable[T any](db *bolt.DB, bucket []byte, kind string) Table[T] {
	return Table[T]{db: db, bucket: bucket, kind: kind, memo: newMemo[T]()}
}

// Create stores a new record; errdefs.ErrAlreadyExists if the ID is taken.
func (t Table[T]) Create(id string, record T) error {
	return t.db.Update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(t.bucket)
		if bucket.Get([]byte(id)) != nil {
			return fmt.Errorf("%s %s: %w", t.kind, id, errdefs.ErrAlreadyExists)
		}
		return t.put(bucket, id, record)
	})
}

// Get returns the record of an ID, or errdefs.ErrNotFound.
func (t Table[T]) Get(id string) (T, error) {
	var record T
	err := t.db.View(func(tx *bolt.Tx) (err error) {
		record, err = t.getShared(tx.Bucket(t.bucket), id)
		return err
	})
	return record, err
}

// Find returns the record whose ID is id or, as people type them, the only one
// whose ID begins with it; errdefs.ErrNotFound if there is none or more than one.
func (t Table[T]) Find(id string) (T, error) {
	var record T
	err := t.db.View(func(tx *bolt.Tx) (err error) {
		bucket := tx.Bucket(t.bucket)
		if full, ok := expand(bucket, id); ok {
			id = full
		}
		record, err = t.getShared(bucket, id)
		return err
	})
	return record, err
}

// expand returns the only key of a bucket that begins with prefix. A key that
// equals prefix is the only one by itself.
func expand(bucket *bolt.Bucket, prefix string) (string, bool) {
	if prefix == "" {
		return "", false
	}
	cursor := bucket.Cursor()
	first, _ := cursor.Seek([]byte(prefix))
	if !bytes.HasPrefix(first, []byte(prefix)) {
		return "", false
	}
	if len(first) > len(prefix) {
		if second, _ := cursor.Next(); bytes.HasPrefix(second, []byte(prefix)) {
			return "", false
		}
	}
	return string(first), true
}

// Update changes a record by a function and returns what is stored then. Nothing
// is written when the function fails. Concurrent updates come one after another.
func (t Table[T]) Update(id string, change func(*T) error) (T, error) {
	var record T
	err := t.db.Update(func(tx *bolt.Tx) (err error) {
		bucket := tx.Bucket(t.bucket)
		if record, err = t.get(bucket, id); err != nil {
			return err
		}
		if err := change(&record); err != nil {
			return err
		}
		return t.put(bucket, id, record)
	})
	return record, err
}

// Delete removes a record; it is no error if there is none.
func (t Table[T]) Delete(id string) error {
	return t.db.Update(func(tx *bolt.Tx) error {
		if err := tx.Bucket(t.bucket).Delete([]byte(id)); err != nil {
			return fmt.Errorf("delete record of %s %s: %w", t.kind, id, err)
		}
		return nil
	})
}

// List returns all records in the order of their IDs. If one cannot be decoded
// there is no list but an error, of class errdefs.ErrDataLoss, that names each.
// The slices in the records are shared with other callers: do not write into them.
func (t Table[T]) List() ([]T, error) {
	var (
		records []T
		damaged error
	)
	err := t.db.View(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(t.bucket)
		defer func() {
			if t.memo.size() > len(records) {
				t.memo.retain(func(id []byte) bool { return bucket.Get(id) != nil })
			}
		}()
		return bucket.ForEach(func(id, raw []byte) error {
			record, err := t.memo.record(id, raw, t.decode)
			if err != nil {
				damaged = errors.Join(damaged, err)
				return nil
			}
			records = append(records, record)
			return nil
		})
	})
	if err := errors.Join(err, damaged); err != nil {
		return nil, err
	}
	return records, nil
}

// get returns a record of the caller's own.
func (t Table[T]) get(bucket *bolt.Bucket, id string) (T, error) {
	raw := bucket.Get([]byte(id))
	if raw == nil {
		var none T
		return none, t.notFound(id)
	}
	return t.decode(id, raw)
}

// getShared returns a record whose slices nobody may write into.
func (t Table[T]) getShared(bucket *bolt.Bucket, id string) (T, error) {
	raw := bucket.Get([]byte(id))
	if raw == nil {
		var none T
		return none, t.notFound(id)
	}
	return t.memo.record([]byte(id), raw, t.decode)
}

func (t Table[T]) notFound(id string) error {
	return fmt.Errorf("%s %s: %w", t.kind, id, errdefs.ErrNotFound)
}

func (t Table[T]) put(bucket *bolt.Bucket, id string, record T) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record of %s %s: %w", t.kind, id, err)
	}
	if err := bucket.Put([]byte(id), raw); err != nil {
		return fmt.Errorf("write record of %s %s: %w", t.kind, id, err)
	}
	return nil
}

func (t Table[T]) decode(id string, raw []byte) (T, error) {
	var record T
	if err := json.Unmarshal(raw, &record); err != nil {
		return record, fmt.Errorf("record of %s %s in database %s cannot be decoded (%w), restore the database: %w",
			t.kind, id, t.db.Path(), err, errdefs.ErrDataLoss)
	}
	return record, nil
}
