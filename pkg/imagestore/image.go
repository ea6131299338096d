package imagestore

import (
	"maps"
	"slices"
	"time"
)

// Format is how the guest's disk is laid out in an image file. It is decided once,
// when the image is imported, and must be stated to QEMU ever after: nobody may
// probe it again.
type Format string

// The formats that are accepted.
const (
	FormatQCOW2 Format = "qcow2"
	FormatRaw   Format = "raw"
)

// Image is one disk image of the store.
type Image struct {
	// ID is the SHA-256 of the stored file, 64 hex digits.
	ID string
	// Names are the names with tag under which the image was pulled, sorted:
	// what the CRI calls repo tags. It is empty when all were given to newer content.
	Names []string
	// Digests are the names with digest, sorted: what the CRI calls repo digests.
	// The digest is that of the bytes that the server sent (for OCI: of the
	// manifest), which is the ID only if these were not wrapped.
	Digests []string
	// Size is the length of the stored file in bytes.
	Size int64
	// VirtualSize is the size in bytes of the disk that the guest sees.
	VirtualSize int64
	// Format is the format of the stored file.
	Format Format
	// Path is the stored file. QEMU can read it, and nobody can write it.
	Path string
	// PulledAt is when the content was first stored.
	PulledAt time.Time
}

// record is an image as it is written to the index and to its description file.
// Published records are immutable: a change replaces the record.
type record struct {
	ID          string            `json:"id"`
	Names       []string          `json:"names,omitempty"`
	Digests     []string          `json:"digests,omitempty"`
	Size        int64             `json:"size"`
	VirtualSize int64             `json:"virtualSize"`
	Format      Format            `json:"format"`
	PulledAt    time.Time         `json:"pulledAt"`
	Removed     bool              `json:"removed,omitempty"` // hidden; the file stays for its holders
	Origins     map[string]origin `json:"origins,omitempty"` // by the key of the place it was fetched from
}

// origin remembers what a server said about the content, so that the next pull
// can ask whether it changed instead of fetching it again. It holds no URL: that
// could contain a secret.
type origin struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
	Digest       string `json:"digest"` // of the bytes sent, 64 hex digits
}

func (r *record) image(path string) Image {
	return Image{
		ID:          r.ID,
		Names:       slices.Clone(r.Names),
		Digests:     slices.Clone(r.Digests),
		Size:        r.Size,
		VirtualSize: r.VirtualSize,
		Format:      r.Format,
		Path:        path,
		PulledAt:    r.PulledAt,
	}
}

// clone is a copy that may be changed.
func (r *record) clone() *record {
	c := *r
	c.Origins = make(map[string]origin, len(r.Origins))
	maps.Copy(c.Origins, r.Origins)
	return &c
}

// equal compares all that is stored.
func (r *record) equal(o *record) bool {
	return r.ID == o.ID && slices.Equal(r.Names, o.Names) && slices.Equal(r.Digests, o.Digests) &&
		r.Size == o.Size && r.VirtualSize == o.VirtualSize && r.Format == o.Format &&
		r.PulledAt.Equal(o.PulledAt) && r.Removed == o.Removed && maps.Equal(r.Origins, o.Origins)
}
