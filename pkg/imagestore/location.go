package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/translation"
)

// Protocols of places. A name can choose all but file, by its first part.
const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeOCI   = "oci"
	schemeFile  = "file"
)

// portPattern is a host whose port is spelt host__port, because kubelet refuses
// image names with a second colon.
var portPattern = regexp.MustCompile(`^(.+)__([0-9]{1,5})$`)

// location is the place that an image name means on this node.
type location struct {
	url       *url.URL
	transport *translation.Transport // nil means the defaults
}

// locate finds out where an image is to be fetched from: translation files come
// first, then a protocol that the name begins with, then the default protocol.
func (s *Store) locate(ref Reference) (location, error) {
	path := ref.Path()
	if target, ok := s.translations().Translate(path); ok {
		return s.locateTarget(ref, target)
	}
	scheme, rest, found := strings.Cut(path, "/")
	switch {
	case found && scheme == schemeOCI:
		return location{url: &url.URL{Scheme: schemeOCI, Host: withPort(firstPart(rest)), Path: "/" + restOf(rest) + ociIdentifier(ref)}}, nil
	case !found, scheme != schemeHTTP && scheme != schemeHTTPS:
		scheme, rest = s.opts.DefaultProtocol, path
	}
	host, path, found := strings.Cut(rest, "/")
	if !found || host == "" {
		return location{}, classed(errdefs.ErrInvalidArgument, "image name %q is in no translation file and has no path after the host %q", ref, host)
	}
	u, err := url.Parse(scheme + "://" + withPort(host) + "/" + path)
	if err != nil {
		return location{}, classed(errdefs.ErrInvalidArgument, "image name %q means no valid URL", ref)
	}
	return location{url: u}, nil
}

// locateTarget reads the URL of a translation file.
func (s *Store) locateTarget(ref Reference, target translation.Target) (location, error) {
	raw := target.URL
	if !strings.Contains(raw, "://") {
		raw = s.opts.DefaultProtocol + "://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || (u.Host == "" && u.Scheme != schemeFile) {
		// The parser's own error would repeat the URL, which may hold a password.
		return location{}, classed(errdefs.ErrFailedPrecondition, "the translation of image name %q is no valid URL; correct it on this node", ref)
	}
	switch u.Scheme {
	case schemeHTTP, schemeHTTPS, schemeOCI, schemeFile:
		return location{url: u, transport: target.Transport}, nil
	}
	return location{}, classed(errdefs.ErrFailedPrecondition, "the translation of image name %q has the unknown protocol %q", ref, u.Scheme)
}

// translations are the translation files as they are now; what is wrong with
// them is logged when it is new.
func (s *Store) translations() *translation.Table {
	table, problems, changed := s.translation.Table()
	if changed {
		for _, problem := range problems {
			s.log.Error("image translation file is not used", "err", problem)
		}
	}
	return table
}

// TranslationProblems tells what is wrong with translation files at present. Such
// a file is not used at all.
func (s *Store) TranslationProblems() []error {
	_, problems, _ := s.translation.Table()
	return problems
}

// ociIdentifier is what the name pins or names within an OCI repository.
func ociIdentifier(ref Reference) string {
	if ref.Digest != "" {
		return digestMarker + ref.Digest
	}
	return ":" + ref.Tag
}

func firstPart(path string) string { first, _, _ := strings.Cut(path, "/"); return first }

func restOf(path string) string { _, rest, _ := strings.Cut(path, "/"); return rest }

func withPort(host string) string { return portPattern.ReplaceAllString(host, "$1:$2") }

// key identifies the place, in file names and in the index, without telling its
// URL. What came through another transport profile may be another's content.
func (l location) key() string {
	u := *l.url
	u.User = nil
	text := u.String()
	if l.transport != nil {
		text += "\n" + l.transport.ID
	}
	return hashKey(text)
}

func hashKey(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// secrets differs for different users and passwords in the URL.
func (l location) secrets() string { return hashKey(l.url.User.String()) }

// String is the place without its secrets, for logs and errors: a query may hold
// a signature, so only its presence is told.
func (l location) String() string {
	u := *l.url
	u.User = nil
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	return u.String()
}
