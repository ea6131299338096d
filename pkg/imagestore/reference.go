package imagestore

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Prefixes of image names that mean a disk image. The second one is Virtlet's, an
// alias of the first.
const (
	Prefix       = "vm.ambipod.io/"
	LegacyPrefix = "virtlet.cloud/"
)

const (
	defaultTag    = "latest"
	digestMarker  = "@sha256:"
	maxNameLength = 1024
	idLength      = 64 // hex digits of a SHA-256
)

var (
	idPattern        = regexp.MustCompile(`^[0-9a-f]{64}$`)
	tagPattern       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	componentPattern = regexp.MustCompile(`^[A-Za-z0-9._~+=,-]+(:[0-9]{1,5})?$`)
)

// Reference is an image name taken apart. Names have the form
//
//	<prefix>/<path>[:<tag>][@sha256:<hex>]
//
// where a colon with digits before a later slash is a port, as in
// vm.ambipod.io/http/localhost:8080/disk.qcow2.
type Reference struct {
	Repository string // the name without tag and digest
	Tag        string // "latest" when the name has neither tag nor digest
	Digest     string // 64 hex digits, or empty
}

// ParseReference takes an image name apart. The error, of class
// errdefs.ErrInvalidArgument, says what is wrong with the name.
func ParseReference(name string) (Reference, error) {
	if len(name) > maxNameLength {
		return Reference{}, badName(name[:64]+"…", "is longer than %d characters", maxNameLength)
	}
	rest, digest, digested := strings.Cut(name, "@")
	if digested {
		var isSHA256 bool
		if digest, isSHA256 = strings.CutPrefix("@"+digest, digestMarker); !isSHA256 || !idPattern.MatchString(digest) {
			return Reference{}, badName(name, "has a digest that is not sha256: and 64 hex digits")
		}
	}
	ref := Reference{Repository: rest, Digest: digest}
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexByte(rest, '/') {
		ref.Repository, ref.Tag = rest[:colon], rest[colon+1:]
		if !tagPattern.MatchString(ref.Tag) {
			return Reference{}, badName(name, "has a malformed tag")
		}
	} else if !digested {
		ref.Tag = defaultTag
	}
	return ref, ref.check(name)
}

func (r Reference) check(name string) error {
	path := r.Path()
	if path == r.Repository {
		return badName(name, "does not begin with %s, so it is no disk image", Prefix)
	}
	for component := range strings.SplitSeq(path, "/") {
		switch {
		case component == "":
			return badName(name, "has an empty part between slashes")
		case component == "." || component == "..":
			return badName(name, "has a part %q", component)
		case !componentPattern.MatchString(component):
			return badName(name, "has a part %q; letters, digits and ._~+=,- are allowed (use a translation file for other URLs)", component)
		}
	}
	return nil
}

// Path is the repository without its prefix: what is translated, or read as a
// location.
func (r Reference) Path() string {
	for _, prefix := range []string{Prefix, LegacyPrefix} {
		if path, ok := strings.CutPrefix(r.Repository, prefix); ok {
			return path
		}
	}
	return r.Repository
}

// String is the name under which the image is listed and found: with the digest
// when there is one (a tag beside it has no meaning then, as in containerd), else
// with the tag.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.withDigest(r.Digest)
	}
	return r.Repository + ":" + r.Tag
}

// withDigest is the name that pins this repository to a content.
func (r Reference) withDigest(hex string) string { return r.Repository + digestMarker + hex }

// digestOf cuts the digest out of a name that ends in one.
func digestOf(name string) string {
	_, digest, _ := strings.Cut(name, digestMarker)
	return digest
}

// parseID recognises an image ID, with or without the name of its algorithm.
func parseID(s string) (string, bool) {
	s = strings.TrimPrefix(s, "sha256:")
	return s, idPattern.MatchString(s)
}

// addName adds name to a sorted set of names.
func addName(names []string, name string) []string {
	i, found := slices.BinarySearch(names, name)
	if found {
		return names
	}
	return slices.Insert(slices.Clone(names), i, name)
}

// withoutName is the set without name; nil when none is left, as after a restart.
func withoutName(names []string, name string) []string {
	i, found := slices.BinarySearch(names, name)
	if !found {
		return names
	}
	if len(names) == 1 {
		return nil
	}
	return slices.Delete(slices.Clone(names), i, i+1)
}

func badName(name, format string, args ...any) error {
	return classed(errdefs.ErrInvalidArgument, "image name %q %s", name, fmt.Sprintf(format, args...))
}
