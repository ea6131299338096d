package imagestore

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
)

// Credentials are what a pull may present to the server: the fields of the CRI's
// AuthConfig. They are never logged and never stored.
type Credentials struct {
	Username, Password string
	Auth               string // base64 of user:password, as in Docker's configuration
	IdentityToken      string // OAuth2 refresh token of an OCI registry
	RegistryToken      string // bearer token
	ServerAddress      string // the only host that may see the rest, if not empty
}

// String hides all, so that no log line can contain a secret.
func (c Credentials) String() string { return "credentials (hidden)" }

// GoString hides all from %#v, too.
func (c Credentials) GoString() string { return c.String() }

// fingerprint differs between different credentials. It lives in memory only.
func (c Credentials) fingerprint() string {
	h := sha256.New()
	for _, field := range []string{c.Username, c.Password, c.Auth, c.IdentityToken, c.RegistryToken, c.ServerAddress} {
		h.Write(fmt.Appendf(nil, "%d:%s", len(field), field))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// basic returns user name and password, from whichever field has them.
func (c Credentials) basic() (user, password string, ok bool, err error) {
	if c.Username != "" || c.Password != "" {
		return c.Username, c.Password, true, nil
	}
	if c.Auth == "" {
		return "", "", false, nil
	}
	raw, err := base64.StdEncoding.DecodeString(c.Auth)
	if err != nil {
		return "", "", false, classed(errdefs.ErrInvalidArgument, "the auth field of the pull secret is not base64")
	}
	user, password, found := strings.Cut(string(raw), ":")
	if !found {
		return "", "", false, classed(errdefs.ErrInvalidArgument, "the auth field of the pull secret has no colon between user and password")
	}
	return user, strings.TrimRight(password, "\x00"), true, nil
}

// meantFor tells whether the credentials may be sent to a host (with port, if it
// is not the default one), by its name or as the image's prefix.
func (c Credentials) meantFor(host string) bool {
	address := c.ServerAddress
	if address == "" {
		return true
	}
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Host
	}
	address, _, _ = strings.Cut(address, "/")
	return address == host || address+"/" == Prefix || address+"/" == LegacyPrefix
}

// authorize adds the credentials to a plain HTTP request. Those in the URL, which
// can only come from a translation file, go first.
func (c Credentials) authorize(r *http.Request) error {
	if user := r.URL.User; user != nil {
		password, _ := user.Password()
		r.SetBasicAuth(user.Username(), password)
		return nil
	}
	if !c.meantFor(r.URL.Host) {
		return nil
	}
	if c.RegistryToken != "" {
		r.Header.Set("Authorization", "Bearer "+c.RegistryToken)
		return nil
	}
	user, password, ok, err := c.basic()
	switch {
	case err != nil:
		return err
	case ok:
		r.SetBasicAuth(user, password)
	case c.IdentityToken != "":
		return classed(errdefs.ErrInvalidArgument, "an identity token works with OCI registries only; use a user name and password for %s", r.URL.Host)
	}
	return nil
}
