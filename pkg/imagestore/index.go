package imagestore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// indexVersion is the version of the schema that the package comment draws.
const indexVersion = 1

const lockTimeout = 2 * time.Second

// Names of the buckets and of the key in the first.
const (
	bucketMeta    = "meta"
	bucketImages  = "images"
	bucketHolders = "holders"
	keyVersion    = "version"
)

// index is the bolt file and its contents in memory: reads never touch the disk.
// Only one process can have it open.
type index struct {
	db    *bolt.DB
	fresh bool // holds nothing yet; the first change gives it its version

	mu      sync.RWMutex // guards the maps, not what they point to
	images  map[string]*record
	refs    map[string]string   // name, with tag or with digest → ID; not of removed images
	digests map[string]string   // digest of the bytes sent → ID; not of removed images
	origins map[string]string   // key of an origin → ID; not of removed images
	holders map[string][]string // holder → IDs, sorted
	listed  []*record           // the images that are not removed, by ID; nil after a change
}

// change is one atomic step of the index.
type change struct {
	put     []*record
	drop    []string            // IDs
	holders map[string][]string // holder → IDs; none means that the holder is gone
}

// openIndex opens or creates the index. The error contains errCorrupt when the
// file has to be rebuilt, and errdefs.ErrFailedPrecondition when another process
// or a newer version owns it.
func openIndex(path string) (x *index, err error) {
	// Both a panic of bolt and a page fault behind the end of a cut file mean
	// that the file is broken.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			x, err = nil, classed(errCorrupt, "read %s: %v", path, p)
		}
	}()
	db, err := bolt.Open(path, fileModePrivate, &bolt.Options{Timeout: lockTimeout})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, classed(errdefs.ErrFailedPrecondition, "image index %s is in use by another process; stop that one first", path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum):
		return nil, classed(errCorrupt, "open %s: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open image index: %w", err)
	}
	x = &index{db: db}
	if err := x.load(); err != nil {
		return nil, join(err, db.Close())
	}
	return x, nil
}

func (x *index) close() error { return x.db.Close() }

// load creates what is missing and reads all the rest into memory.
func (x *index) load() error {
	x.images = map[string]*record{}
	x.holders = map[string][]string{}
	err := x.db.Update(func(tx *bolt.Tx) error {
		if err := x.checkVersion(tx); err != nil {
			return err
		}
		if err := readBucket(tx, bucketImages, func(key string, r *record) { x.images[key] = r }); err != nil {
			return err
		}
		return readBucket(tx, bucketHolders, func(key string, ids *[]string) { x.holders[key] = *ids })
	})
	if err != nil {
		return fmt.Errorf("load image index %s: %w", x.db.Path(), err)
	}
	x.link()
	return nil
}

// checkVersion refuses the index of a newer version.
func (x *index) checkVersion(tx *bolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists([]byte(bucketMeta))
	if err != nil {
		return err
	}
	raw := meta.Get([]byte(keyVersion))
	if raw == nil {
		x.fresh = true
		return nil
	}
	version, err := strconv.Atoi(string(raw))
	if err != nil {
		return classed(errCorrupt, "version %q", raw)
	}
	if version > indexVersion {
		return classed(errdefs.ErrFailedPrecondition, "it has version %d and this program knows versions up to %d; run a newer Ambipod, or move the image folder away",
			version, indexVersion)
	}
	return nil
}

func readBucket[T any](tx *bolt.Tx, name string, visit func(key string, value *T)) error {
	bucket, err := tx.CreateBucketIfNotExists([]byte(name))
	if err != nil {
		return err
	}
	return bucket.ForEach(func(k, v []byte) error {
		value := new(T)
		if err := json.Unmarshal(v, value); err != nil {
			return classed(errCorrupt, "%s %q: %w", name, k, err)
		}
		visit(string(k), value)
		return nil
	})
}

// apply writes a change to the disk, then makes it visible. After an error
// nothing has changed. Callers take turns.
func (x *index) apply(c change) error {
	err := x.db.Update(func(tx *bolt.Tx) error {
		if err := putVersion(tx, x.fresh); err != nil {
			return err
		}
		images, holders := tx.Bucket([]byte(bucketImages)), tx.Bucket([]byte(bucketHolders))
		for _, r := range c.put {
			if err := putJSON(images, r.ID, r); err != nil {
				return err
			}
		}
		for _, id := range c.drop {
			if err := images.Delete([]byte(id)); err != nil {
				return err
			}
		}
		for holder, ids := range c.holders {
			if err := putHolder(holders, holder, ids); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return writeError("write image index "+x.db.Path(), err)
	}
	x.fresh = false
	x.mu.Lock()
	defer x.mu.Unlock()
	x.publishLocked(c)
	return nil
}

func putVersion(tx *bolt.Tx, fresh bool) error {
	if !fresh {
		return nil
	}
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyVersion), strconv.AppendInt(nil, indexVersion, 10))
}

func putHolder(holders *bolt.Bucket, holder string, ids []string) error {
	if len(ids) == 0 {
		return holders.Delete([]byte(holder))
	}
	return putJSON(holders, holder, ids)
}

func putJSON(bucket *bolt.Bucket, key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return bucket.Put([]byte(key), raw)
}

// publishLocked brings the maps in line with a change that is on the disk.
func (x *index) publishLocked(c change) {
	x.listed = nil
	for _, id := range c.drop {
		x.unlinkLocked(x.images[id])
		delete(x.images, id)
	}
	for _, r := range c.put {
		x.unlinkLocked(x.images[r.ID])
		x.images[r.ID] = r
	}
	// Names may move between the records of one change, so all the old ones
	// are unlinked before the new ones are linked.
	for _, r := range c.put {
		x.linkLocked(r)
	}
	for holder, ids := range c.holders {
		if len(ids) == 0 {
			delete(x.holders, holder)
		} else {
			x.holders[holder] = ids
		}
	}
}

// link builds the lookup maps from all images.
func (x *index) link() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refs, x.digests, x.origins = map[string]string{}, map[string]string{}, map[string]string{}
	for _, r := range x.images {
		x.linkLocked(r)
	}
}

func (x *index) linkLocked(r *record) {
	if r.Removed {
		return
	}
	for _, name := range r.Names {
		x.refs[name] = r.ID
	}
	for _, name := range r.Digests {
		x.refs[name] = r.ID
		x.digests[digestOf(name)] = r.ID
	}
	for key := range r.Origins {
		x.origins[key] = r.ID
	}
}

func (x *index) unlinkLocked(r *record) {
	if r == nil || r.Removed {
		return
	}
	for _, name := range r.Names {
		delete(x.refs, name)
	}
	for _, name := range r.Digests {
		delete(x.refs, name)
		delete(x.digests, digestOf(name))
	}
	for key := range r.Origins {
		delete(x.origins, key)
	}
}

// byID returns the record of an image, also of a removed one that is still held.
func (x *index) byID(id string) *record {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.images[id]
}

// byRef finds an image by a name in the form of Reference.String.
func (x *index) byRef(ref string) *record { return x.lookup(x.refs, ref) }

// byDigest finds an image by the digest of the bytes that a server sent.
func (x *index) byDigest(digest string) *record { return x.lookup(x.digests, digest) }

// byOrigin finds the image that was last fetched from a place.
func (x *index) byOrigin(key string) *record { return x.lookup(x.origins, key) }

func (x *index) lookup(m map[string]string, key string) *record {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.images[m[key]]
}

// all returns every record, removed ones too, in no particular order.
func (x *index) all() []*record {
	x.mu.RLock()
	defer x.mu.RUnlock()
	records := make([]*record, 0, len(x.images))
	for _, r := range x.images {
		records = append(records, r)
	}
	return records
}

// visible returns the records of all images that are not removed, sorted by ID. The
// slice is shared.
func (x *index) visible() []*record {
	x.mu.RLock()
	listed := x.listed
	x.mu.RUnlock()
	if listed != nil {
		return listed
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	listed = make([]*record, 0, len(x.images))
	for _, r := range x.images {
		if !r.Removed {
			listed = append(listed, r)
		}
	}
	slices.SortFunc(listed, func(a, b *record) int { return cmp.Compare(a.ID, b.ID) })
	x.listed = listed
	return listed
}

// held returns the holders of an image.
func (x *index) held(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var holders []string
	for holder, ids := range x.holders {
		if slices.Contains(ids, id) {
			holders = append(holders, holder)
		}
	}
	return holders
}

// heldBy returns the images that a holder holds.
func (x *index) heldBy(holder string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.holders[holder]
}

// holderNames returns all holders.
func (x *index) holderNames() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.holders))
}
