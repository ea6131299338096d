package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
)

// portPattern is a host whose port is spelt host__port, because kubelet refuses
// image names with a second colon.
var portPattern = regexp.MustCompile(`^(.+)__([0-9]{1,5})$`)

// location is the place that an image name means on this node.
type location struct {
	url *url.URL
}

// locate finds out where an image is to be fetched from.
func (s *Store) locate(ref Reference) (location, error) {
	scheme, rest, found := strings.Cut(ref.Path(), "/")
	if !found || (scheme != schemeHTTP && scheme != schemeHTTPS) {
		scheme, rest = s.opts.DefaultProtocol, ref.Path()
	}
	host, path, found := strings.Cut(rest, "/")
	if !found || host == "" {
		return location{}, classed(errdefs.ErrInvalidArgument, "image name %q has no path after the host %q", ref, host)
	}
	host = portPattern.ReplaceAllString(host, "$1:$2")
	u, err := url.Parse(scheme + "://" + host + "/" + path)
	if err != nil {
		return location{}, classed(errdefs.ErrInvalidArgument, "image name %q means no valid URL", ref)
	}
	return location{url: u}, nil
}

// key identifies the place, in file names and in the index, without telling its URL.
func (l location) key() string {
	u := *l.url
	u.User = nil
	sum := sha256.Sum256([]byte(u.String()))
	return hex.EncodeToString(sum[:])
}

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
