package imagestore

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/translation"
)

// Modes of the store's folders and files. QEMU walks through the passable ones
// to a file whose name it was given; it can list none.
const (
	dirModePassable = 0o711
	dirModePrivate  = 0o700
	fileModePrivate = 0o600
	fileModeImage   = 0o440
)

// Owner is the user and group that QEMU runs as.
type Owner struct {
	UID, GID int
}

// Options configure a store. Zero values of the limits mean the defaults.
type Options struct {
	// Dir is the store's folder, created if need be. The folders on the way to
	// it must be passable for QEMU.
	Dir string
	// QEMU may read the images, by its group, and is who qemu-img runs as. Nil
	// means that this process's own user does all of that, which is only
	// sensible when it is not root.
	QEMU *Owner
	// DefaultProtocol is "https" (if empty) or "http": how a name without
	// protocol and without translation is fetched.
	DefaultProtocol string
	// TranslationDirs are folders of translation files, the most important first.
	// Package translation describes them. A folder may be missing.
	TranslationDirs []string
	// FileRoots are folders below which translation files may name file:// URLs.
	FileRoots []string
	// InsecureRegistries are hosts (with port, if any) of OCI registries that may
	// be spoken to without TLS; those on this machine always may.
	InsecureRegistries []string
	// MaxDownload is the largest number of bytes fetched for one image; 256 GiB if 0.
	MaxDownload int64
	// MaxSize is the largest stored file, after unwrapping, in bytes; 256 GiB if 0.
	MaxSize int64
	// MaxVirtualSize is the largest disk that a guest may see, in bytes; 4 TiB if 0.
	MaxVirtualSize int64
	// MinFree is how many bytes a download leaves free on the file system; 256 MiB if 0.
	MinFree int64
	// StallTimeout is how long a server may send nothing, or less than 1 KiB/s,
	// until it is given up; one minute if 0.
	StallTimeout time.Duration
	// Logger gets what happens to images; slog.Default if nil.
	Logger *slog.Logger
}

// Defaults of Options.
const (
	defaultMaxDownload    = 256 << 30
	defaultMaxSize        = 256 << 30
	defaultMaxVirtualSize = 4 << 40
	defaultMinFree        = 256 << 20
	defaultStallTimeout   = time.Minute
)

// Store is the image store of one node. It may be used concurrently.
type Store struct {
	opts    Options
	paths   paths
	log     *slog.Logger
	index   *index
	flights flights

	transfers   transfers
	counters    *counters
	translation *translation.Source

	// commit serialises all that changes the index together with files, so that
	// no file is removed while another operation is about to name it.
	commit sync.Mutex

	// Seams, replaced by tests before the store is used.
	checkDisk checkFunc             // runs qemu-img check
	reached   func(step step) error // called before each write step
	now       func() time.Time
	retryWait func(attempt int) time.Duration
}

// Open opens the store in o.Dir and puts right what a crash left there. An index
// that is lost or corrupt is rebuilt from the image files; one that a newer
// version wrote, or that another process uses, is refused with
// errdefs.ErrFailedPrecondition. The context limits the time for a rebuild.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts:        o,
		flights:     flights{active: map[string]*flight{}},
		paths:       paths{o.Dir},
		log:         o.Logger,
		translation: translation.NewSource(o.TranslationDirs),
		counters:    newCounters(),
		checkDisk:   qemuImgCheck(o.QEMU),
		reached:     func(step) error { return nil },
		now:         time.Now,
		retryWait:   backoff,
	}
	if err := s.paths.create(); err != nil {
		return nil, err
	}
	if err := s.openIndex(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", o.Dir, err)
	}
	if err := s.sweep(); err != nil {
		return nil, join(fmt.Errorf("open image store %s: %w", o.Dir, err), s.index.close())
	}
	return s, nil
}

func (o Options) withDefaults() (Options, error) {
	if !filepath.IsAbs(o.Dir) {
		return o, classed(errdefs.ErrInvalidArgument, "image store folder %q is not an absolute path", o.Dir)
	}
	o.DefaultProtocol = cmp.Or(o.DefaultProtocol, schemeHTTPS)
	if o.DefaultProtocol != schemeHTTPS && o.DefaultProtocol != schemeHTTP {
		return o, classed(errdefs.ErrInvalidArgument, "default protocol %q of the image store is neither http nor https", o.DefaultProtocol)
	}
	for _, root := range o.FileRoots {
		if !filepath.IsAbs(root) {
			return o, classed(errdefs.ErrInvalidArgument, "image file root %q is not an absolute path", root)
		}
	}
	o.MaxDownload = cmp.Or(o.MaxDownload, defaultMaxDownload)
	o.MaxSize = cmp.Or(o.MaxSize, defaultMaxSize)
	o.MaxVirtualSize = cmp.Or(o.MaxVirtualSize, defaultMaxVirtualSize)
	o.MinFree = cmp.Or(o.MinFree, defaultMinFree)
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStallTimeout)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return o, nil
}

// Close ends all running pulls, which leave their partial files for the next
// start, and closes the index.
func (s *Store) Close() error {
	s.flights.stop()
	return s.index.close()
}

// Resolve finds an image by name, by name with digest or by ID (with or without
// "sha256:"). An unknown image yields errdefs.ErrNotFound.
func (s *Store) Resolve(nameOrID string) (Image, error) {
	r := s.find(nameOrID)
	if r == nil {
		return Image{}, classed(errdefs.ErrNotFound, "image %q", nameOrID)
	}
	return r.image(s.paths.data(r.ID)), nil
}

// find returns the visible image that a name or an ID means, or nil.
func (s *Store) find(nameOrID string) *record {
	if id, ok := parseID(nameOrID); ok {
		if r := s.index.byID(id); r != nil && !r.Removed {
			return r
		}
		return nil
	}
	ref, err := ParseReference(nameOrID)
	if err != nil {
		return nil // a name that cannot be pulled is certainly not here
	}
	return s.index.byRef(ref.String())
}

// List returns all images, sorted by ID.
func (s *Store) List() ([]Image, error) {
	records := s.index.visible()
	images := make([]Image, 0, len(records))
	folder := s.paths.data("") + "/" // kubelet asks often, and cleaning a path takes a microsecond
	for _, r := range records {
		images = append(images, r.image(folder+r.ID))
	}
	return images, nil
}

// paths names the files of a store.
type paths struct{ dir string }

func (p paths) index() string { return filepath.Join(p.dir, "index.db") }

// dataDir holds the image files, each named by its ID.
func (p paths) dataDir() string { return filepath.Join(p.dir, "data") }

func (p paths) data(id string) string { return filepath.Join(p.dataDir(), id) }

// describeDir holds a copy of each image's record, for when the index is lost.
func (p paths) describeDir() string { return filepath.Join(p.dir, "describe") }

func (p paths) describe(id string) string { return filepath.Join(p.describeDir(), id+".json") }

// partialDir holds downloads that are not complete.
func (p paths) partialDir() string { return filepath.Join(p.dir, "partial") }

func (p paths) create() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{p.dir, dirModePassable},
		{p.dataDir(), dirModePassable},
		{p.describeDir(), dirModePrivate},
		{p.partialDir(), dirModePrivate},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("create image store folder: %w", err)
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return fmt.Errorf("set mode of image store folder: %w", err)
		}
	}
	return nil
}
