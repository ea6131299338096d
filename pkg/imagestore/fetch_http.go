package imagestore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/translation"
)

const (
	defaultMaxRedirects = 9
	dialTimeout         = 30 * time.Second
	handshakeTimeout    = 15 * time.Second
	maxResponseHeader   = 256 << 10
	// maxValidator is the longest ETag or modification time that is kept, in bytes.
	maxValidator = 1 << 10
	// staleness is how much older than the answer a modification time must be to
	// mark the bytes strongly (RFC 9110, section 8.8.2.2).
	staleness = time.Minute
)

// body is an open answer of a place.
type body struct {
	io.ReadCloser
	offset    int64 // of the first byte of the reader in the whole
	validator validator
}

// httpPlace fetches from an HTTP server.
type httpPlace struct {
	location    location
	credentials Credentials
	client      *http.Client
	known       origin // what is stored from here already, if anything
	immutable   bool   // the URL names a content, which cannot change
	size        int64  // that the content must have, in bytes; 0 if any will do
}

func newHTTPPlace(l location, c Credentials, known origin) *httpPlace {
	return &httpPlace{location: l, credentials: c, known: known, client: &http.Client{
		Transport:     newTransport(l.transport),
		CheckRedirect: redirectPolicy(l.transport).discreet,
	}}
}

func newTransport(profile *translation.Transport) *http.Transport {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
		// The bytes are wanted as they lie on the server, whose digest is known.
		DisableCompression: true,
		// HTTP/2 gains nothing for one big file and costs throughput.
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
		ReadBufferSize:  copyBuffer,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
			if r.StatusCode == http.StatusOK {
				return nil
			}
			return classed(classOfStatus(r.StatusCode), "the proxy answers %d %s", r.StatusCode, http.StatusText(r.StatusCode))
		},
	}
	if profile != nil && profile.Proxy != nil {
		t.Proxy = http.ProxyURL(profile.Proxy)
	}
	if profile != nil && profile.TLS != nil {
		t.TLSClientConfig = profile.TLS.Clone()
	}
	return t
}

// redirects is a policy about requests to which others led, the first one first.
type redirects func(r *http.Request, via []*http.Request) error

// redirectPolicy lets a limited number of redirects be followed, never to a less safe
// protocol.
func redirectPolicy(profile *translation.Transport) redirects {
	limit := defaultMaxRedirects
	if profile != nil && profile.MaxRedirects >= 0 {
		limit = profile.MaxRedirects
	}
	return func(r *http.Request, via []*http.Request) error {
		switch scheme := r.URL.Scheme; {
		case len(via) > limit:
			return classed(errdefs.ErrFailedPrecondition, "it redirects more than %d times", limit)
		case scheme != schemeHTTPS && via[len(via)-1].URL.Scheme == schemeHTTPS:
			return classed(errdefs.ErrFailedPrecondition, "it redirects from https to %s", excerpt(scheme))
		case scheme != schemeHTTPS && scheme != schemeHTTP:
			return classed(errdefs.ErrFailedPrecondition, "it redirects to the protocol %q", excerpt(scheme))
		}
		return nil
	}
}

// discreet tells the next server nothing that was meant for the one before.
func (allowed redirects) discreet(r *http.Request, via []*http.Request) error {
	r.Header.Del("Referer") // the query of the URL before may hold a signature
	if !sameServer(via[0].URL, r.URL) {
		// net/http would let other ports and subdomains see them.
		r.Header.Del("Authorization")
	}
	return allowed(r, via)
}

// sameServer tells whether two URLs mean one server; its protocol may have become
// a safer one, each on its usual port.
func sameServer(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != usualPorts[u.Scheme] {
			return p
		}
		return ""
	}
	return strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

// usualPorts are those that need not be told in a URL.
var usualPorts = map[string]string{schemeHTTP: "80", schemeHTTPS: "443"}

// open asks for the bytes from have on. The server may answer with the whole.
func (p *httpPlace) open(ctx context.Context, have int64, v validator) (*body, error) {
	request, err := p.request(ctx, have, v)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, explainConnection(p.location.String(), err)
	}
	opened, err := p.accept(response, have, v)
	if err == nil {
		err = p.measure(opened)
	}
	if err != nil {
		return nil, join(err, response.Body.Close())
	}
	return opened, nil
}

func (p *httpPlace) close() { p.client.CloseIdleConnections() }

func (p *httpPlace) request(ctx context.Context, have int64, v validator) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.location.url.String(), http.NoBody)
	if err != nil {
		return nil, classed(errdefs.ErrInvalidArgument, "fetch %s: it is no URL", p.location)
	}
	request.Header.Set("User-Agent", "ambipod-vmruntime")
	request.Header.Set("Accept-Encoding", "identity")
	if err := p.credentials.authorize(request); err != nil {
		return nil, err
	}
	request.URL.User = nil
	switch {
	case have > 0:
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		if mark := v.ETag; mark != "" {
			request.Header.Set("If-Range", mark)
		} else if v.LastModified != "" {
			request.Header.Set("If-Range", v.LastModified)
		}
	case p.known.ETag != "":
		request.Header.Set("If-None-Match", p.known.ETag)
	case p.known.LastModified != "":
		request.Header.Set("If-Modified-Since", p.known.LastModified)
	}
	return request, nil
}

// accept judges the status and finds out which bytes follow.
func (p *httpPlace) accept(r *http.Response, have int64, v validator) (*body, error) {
	switch r.StatusCode {
	case http.StatusOK:
		return &body{ReadCloser: r.Body, validator: p.validatorOf(r.Header, r.ContentLength)}, nil
	case http.StatusPartialContent:
		first, total, ok := contentRange(r.Header)
		if !ok || first != have || (v.Total >= 0 && total >= 0 && total != v.Total) {
			return nil, classed(errRestart, "fetch %s: it sent another part than was asked for (%q)", p.location, excerpt(r.Header.Get("Content-Range")))
		}
		next := p.validatorOf(r.Header, total)
		if next.ETag != "" && next.ETag != v.ETag {
			return nil, classed(errRestart, "fetch %s: it changed on the server", p.location)
		}
		v.Total = max(v.Total, total)
		return &body{ReadCloser: r.Body, offset: have, validator: v}, nil
	case http.StatusRequestedRangeNotSatisfiable:
		if have > 0 && have == v.Total {
			// All of it is here; the connection broke after the last byte.
			return &body{ReadCloser: http.NoBody, offset: have, validator: v}, r.Body.Close()
		}
		return nil, classed(errRestart, "fetch %s: it changed on the server", p.location)
	case http.StatusNotModified:
		if have == 0 && p.known != (origin{}) {
			return nil, errNotModified
		}
	}
	return nil, p.refuse(r)
}

// measure refuses content of another size than it must have. Without a length in the
// answer, one byte too many is let through, so that the digest will not fit.
func (p *httpPlace) measure(b *body) error {
	if p.size == 0 {
		return nil
	}
	if total := b.validator.Total; total >= 0 && total != p.size {
		return classed(errdefs.ErrDataLoss, "fetch %s: the server has %d bytes instead of %d", p.location, total, p.size)
	}
	b.ReadCloser = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(b.ReadCloser, p.size-b.offset+1), b.ReadCloser}
	return nil
}

// refuse turns a status that brings no bytes into an error.
func (p *httpPlace) refuse(r *http.Response) error {
	return classed(classOfStatus(r.StatusCode), "fetch %s: the server answers %d %s", p.location, r.StatusCode, http.StatusText(r.StatusCode))
}

func classOfStatus(code int) error {
	switch {
	case code == http.StatusNotFound, code == http.StatusGone:
		return errdefs.ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusProxyAuthRequired:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= http.StatusInternalServerError:
		return errTemporary
	}
	return errdefs.ErrFailedPrecondition
}

// explainConnection classifies an error of a connection. The URL that net/http
// puts in front is dropped: it may contain a secret.
func explainConnection(what string, err error) error {
	if urlError := (*url.Error)(nil); errors.As(err, &urlError) {
		err = urlError.Err
	}
	var verification *tls.CertificateVerificationError
	var known *classedError
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled):
		return fmt.Errorf("fetch %s: %w", what, err)
	case errors.As(err, &verification):
		return classed(errdefs.ErrFailedPrecondition, "fetch %s: its TLS certificate is not valid: %s", what, excerpt(err.Error()))
	}
	// The text may repeat all that a server sent instead of an answer.
	return classed(errTemporary, "fetch %s: %s", what, excerpt(err.Error()))
}

func (p *httpPlace) validatorOf(h http.Header, total int64) validator {
	if p.immutable {
		return validator{Strong: true, Total: total}
	}
	v := validator{ETag: short(h.Get("ETag")), LastModified: short(h.Get("Last-Modified")), Total: total}
	if v.ETag != "" {
		v.Strong = !strings.HasPrefix(v.ETag, "W/")
		return v
	}
	modified, err1 := http.ParseTime(v.LastModified)
	date, err2 := http.ParseTime(h.Get("Date"))
	v.Strong = err1 == nil && err2 == nil && date.Sub(modified) >= staleness
	return v
}

// short drops a validator that nobody means to be kept and sent back.
func short(mark string) string {
	if len(mark) > maxValidator {
		return ""
	}
	return mark
}

// contentRange reads "bytes first-last/total"; total is -1 for "*".
func contentRange(h http.Header) (first, total int64, ok bool) {
	spec, found := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	if !found {
		return 0, 0, false
	}
	span, size, _ := strings.Cut(spec, "/")
	start, _, _ := strings.Cut(span, "-")
	first, err := strconv.ParseInt(start, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if size == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(size, 10, 64)
	return first, total, err == nil
}
