package proxy

import (
	"bytes"
	"slices"
	"sync"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// view is one immutable state of the configuration: the backends and how
// signals lead to them.
type view struct {
	backends    []*backend // the default first
	fallback    *backend   // the default
	images      []imageOwner
	handlers    map[string]*backend
	annotations map[string]map[string]*backend // key, value

	calls    sync.WaitGroup // running calls that use this view
	replaced chan struct{}  // closed when a newer view is current
}

// imageOwner is a prefix of image names, in whole path segments, and whose it is.
type imageOwner struct {
	prefix  string
	backend *backend
}

// newView builds a view of a configuration; backends are those that it
// describes, in the same order.
func newView(config *Config, backends []*backend) *view {
	v := &view{handlers: map[string]*backend{}, annotations: map[string]map[string]*backend{}, replaced: make(chan struct{})}
	for i, c := range config.Backends {
		b := backends[i]
		if b.isDefault {
			v.fallback = b
			v.backends = slices.Insert(v.backends, 0, b)
		} else {
			v.backends = append(v.backends, b)
		}
		for _, prefix := range c.ImagePrefixes {
			v.images = append(v.images, imageOwner{prefix: prefix, backend: b})
		}
		for _, handler := range c.RuntimeHandlers {
			v.handlers[handler] = b
		}
		for _, annotation := range c.Annotations {
			if v.annotations[annotation.Key] == nil {
				v.annotations[annotation.Key] = map[string]*backend{}
			}
			for _, value := range annotation.Values {
				v.annotations[annotation.Key][value] = b
			}
		}
	}
	// Where one prefix lies within another, the longer one counts.
	slices.SortStableFunc(v.images, func(a, b imageOwner) int { return len(b.prefix) - len(a.prefix) })
	return v
}

// find returns the backend with an identity, nil if there is none.
func (v *view) find(id identity) *backend {
	if v == nil {
		return nil
	}
	for _, b := range v.backends {
		if b.identity == id {
			return b
		}
	}
	return nil
}

// ownerOf tells whose sandbox or container an ID is.
func (v *view) ownerOf(id []byte) *backend {
	for _, b := range v.backends[1:] {
		if hasPrefix(id, b.idPrefix) {
			return b
		}
	}
	return v.fallback
}

// imageOwner tells whose image a name or ID is, nil when it has no prefix.
func (v *view) imageOwner(image []byte) *backend {
	for _, owner := range v.images {
		if hasSegments(image, owner.prefix) {
			return owner.backend
		}
	}
	for _, b := range v.backends[1:] {
		if hasPrefix(image, b.idPrefix) && !isName(image[len(b.idPrefix):]) {
			return b
		}
	}
	return nil
}

// rewrites says which backend's prefix to add or take away.
type rewrites struct{ prefix string }

// add is the wire.Edit for answers: every ID gets the owner's prefix.
func (w rewrites) add(kind wire.Kind, value []byte) (string, []byte, bool) {
	switch {
	case len(value) == 0,
		kind == imageID && isName(value),
		kind == imageName && !isBareImageID(value):
		return "", nil, false
	}
	return w.prefix, value, true
}

// strip is the wire.Edit for requests: every ID loses the owner's prefix.
func (w rewrites) strip(kind wire.Kind, value []byte) (string, []byte, bool) {
	if !hasPrefix(value, w.prefix) {
		return "", nil, false
	}
	bare := value[len(w.prefix):]
	if len(bare) == 0 { // an empty filter would match everything
		return "", nil, false
	}
	if kind != objectID && isName(bare) {
		return "", nil, false
	}
	return "", bare, true
}

// hasSegments tells whether an image's name begins with whole path segments.
func hasSegments(image []byte, prefix string) bool {
	return hasPrefix(image, prefix) && len(image) > len(prefix) && image[len(prefix)] == '/'
}

func hasPrefix(value []byte, prefix string) bool {
	return len(value) >= len(prefix) && string(value[:len(prefix)]) == prefix
}

// isName tells the name of an image from an ID: an ID has no path, no digest
// part, and no colon but that of "sha256:".
func isName(image []byte) bool {
	return bytes.ContainsAny(bytes.TrimPrefix(image, []byte("sha256:")), "/@:")
}

// isBareImageID recognises an ID where a name may stand too: 64 hexadecimal
// digits, perhaps after "sha256:".
func isBareImageID(image []byte) bool {
	const digits = 64
	image = bytes.TrimPrefix(image, []byte("sha256:"))
	return len(image) == digits && len(bytes.Trim(image, "0123456789abcdef")) == 0
}
