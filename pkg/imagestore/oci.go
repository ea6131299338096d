package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	maxManifest   = 4 << 20 // bytes of a manifest or an index, as registries limit them
	maxIndexDepth = 2       // of an index within an index
	maxLayers     = 128
	titleKey      = "org.opencontainers.image.title"
)

// diskEndings are those of files that are disks, in artifacts of several files.
var diskEndings = []string{".qcow2", ".img", ".raw", ".gz", ".xz", ".zst"}

// repository is an OCI repository that has let us in.
type repository struct {
	name     name.Repository
	client   http.RoundTripper // with credentials
	redirect redirects
	stall    time.Duration // how long an answer that is no blob may take
	close    func()
}

// fetchOCI fetches a KubeVirt container disk, or an artifact with a disk as layer.
func (s *Store) fetchOCI(ctx context.Context, ref Reference, where location, c Credentials) (landing, error) {
	options := []name.Option{name.StrictValidation}
	if slices.Contains(s.opts.InsecureRegistries, where.url.Host) {
		options = append(options, name.Insecure) // else only addresses of private networks are tried without TLS
	}
	target, err := name.ParseReference(strings.TrimPrefix(where.url.Host+where.url.Path, "/"), options...)
	if err != nil {
		return landing{}, classed(errdefs.ErrInvalidArgument, "%s is no OCI image: %w", where, err)
	}
	repo, err := s.enter(ctx, target.Context(), where, c)
	if err != nil {
		return landing{}, err
	}
	defer repo.close()
	digest, manifest, err := repo.resolve(ctx, target)
	if err != nil {
		return landing{}, err
	}
	if ref.Digest != "" && ref.Digest != digest {
		return landing{}, classed(errdefs.ErrDataLoss, "the translation leads to the manifest sha256:%s, but the name says sha256:%s", digest, ref.Digest)
	}
	if r := s.index.byDigest(digest); r != nil {
		return landing{id: r.ID, digest: digest, unchanged: true}, nil
	}
	layers, err := disks(manifest)
	if err != nil {
		return landing{}, err
	}
	for _, layer := range layers {
		landed, err := s.fetchLayer(ctx, repo, layer, job{ref: ref, origin: where.key(), manifest: digest, source: where.String()})
		if !errors.Is(err, errNoDiskInLayer) {
			return landed, err
		}
	}
	return landing{}, errNoDiskInLayer
}

// enter asks the registry to be let in.
func (s *Store) enter(ctx context.Context, repo name.Repository, where location, c Credentials) (*repository, error) {
	auth := authn.Anonymous
	switch {
	case where.url.User != nil:
		password, _ := where.url.User.Password()
		auth = &authn.Basic{Username: where.url.User.Username(), Password: password}
	case c.meantFor(repo.RegistryStr()):
		auth = authn.FromConfig(authn.AuthConfig{
			Username: c.Username, Password: c.Password, Auth: c.Auth,
			IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
		})
	}
	base, redirect := newTransport(where.transport), redirectPolicy(where.transport)
	guarded := &registryTransport{base: base, plain: s.opts.InsecureRegistries, redirect: redirect}
	ctx, dog := watch(ctx, s.opts.StallTimeout)
	defer dog.stop()
	r := &repository{name: repo, redirect: redirect, stall: s.opts.StallTimeout, close: base.CloseIdleConnections}
	err := dog.during(func() (n int, err error) {
		r.client, err = transport.NewWithContext(ctx, repo.Registry, auth, guarded, []string{repo.Scope(transport.PullScope)})
		return 0, err
	})
	if err != nil {
		r.close()
		return nil, explainRegistry(repo.String(), err)
	}
	return r, nil
}

// resolve finds the manifest for this machine. The digest is that of the manifest
// or index that the name means.
func (r *repository) resolve(ctx context.Context, target name.Reference) (digest string, m *v1.Manifest, err error) {
	for depth := range maxIndexDepth + 1 {
		got, err := r.get(ctx, target)
		if err != nil {
			return "", nil, err
		}
		if depth == 0 {
			digest = got.Digest.Hex
		}
		switch {
		case got.MediaType.IsIndex():
			index, err := v1.ParseIndexManifest(bytes.NewReader(got.Manifest))
			if err != nil {
				return "", nil, classed(errNoDisk, "the index of %s cannot be read: %s", target, excerpt(err.Error()))
			}
			child, err := choose(index)
			if err != nil {
				return "", nil, err
			}
			target = r.name.Digest(child.String())
		case got.MediaType.IsImage():
			m, err = v1.ParseManifest(bytes.NewReader(got.Manifest))
			if err != nil {
				return "", nil, classed(errNoDisk, "the manifest of %s cannot be read: %s", target, excerpt(err.Error()))
			}
			return digest, m, nil
		default:
			return "", nil, classed(errNoDisk, "%s is of type %q; an OCI or Docker image, version 2, is needed", target, excerpt(string(got.MediaType)))
		}
	}
	return "", nil, classed(errNoDisk, "the index of %s leads to more than %d further ones", target, maxIndexDepth)
}

// get fetches a manifest or an index. Its digest is compared here, not by the
// library, whose error has no class.
func (r *repository) get(ctx context.Context, target name.Reference) (got *remote.Descriptor, err error) {
	ctx, dog := watch(ctx, r.stall)
	defer dog.stop()
	err = dog.during(func() (n int, err error) {
		got, err = remote.Get(r.name.Tag(target.Identifier()), remote.WithContext(ctx), remote.WithTransport(r.client))
		return 0, err
	})
	if err != nil {
		return nil, explainRegistry(target.String(), err)
	}
	if wanted, pinned := target.(name.Digest); pinned && got.Digest.String() != wanted.DigestStr() {
		return nil, classed(errdefs.ErrDataLoss, "fetch %s: the registry sent a manifest with digest %s instead", target, got.Digest)
	}
	return got, nil
}

// choose picks the entry of an index for this machine's processor.
func choose(index *v1.IndexManifest) (v1.Hash, error) {
	var without []v1.Descriptor
	for _, m := range index.Manifests {
		if m.Platform == nil {
			without = append(without, m)
		} else if m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH {
			return m.Digest, nil
		}
	}
	if len(without) == 1 {
		return without[0].Digest, nil
	}
	return v1.Hash{}, classed(errdefs.ErrNotFound, "the index has no image for linux/%s", runtime.GOARCH)
}

// disks are the layers that may have the disk, the likeliest first.
func disks(m *v1.Manifest) ([]v1.Descriptor, error) {
	layers := slices.Clone(m.Layers)
	switch {
	case len(layers) == 0:
		return nil, classed(errNoDisk, "the image has no layers")
	case len(layers) > maxLayers:
		return nil, classed(errNoDisk, "the image has %d layers; at most %d are looked through", len(layers), maxLayers)
	case m.Config.MediaType.IsConfig():
		slices.Reverse(layers) // upper layers count
		return layers, nil
	case len(layers) == 1:
		return layers, nil
	}
	var titled []v1.Descriptor
	for _, layer := range layers {
		if slices.Contains(diskEndings, path.Ext(layer.Annotations[titleKey])) {
			titled = append(titled, layer)
		}
	}
	if len(titled) != 1 {
		return nil, classed(errNoDisk, "the artifact has %d files, of which %d are disks by their title (%s); exactly one is needed",
			len(layers), len(titled), strings.Join(diskEndings, " "))
	}
	return titled, nil
}

// fetchLayer downloads one blob. All pulls that need the same one share it,
// whatever their credentials: each has been shown the manifest that names it.
func (s *Store) fetchLayer(ctx context.Context, r *repository, layer v1.Descriptor, j job) (landing, error) {
	if layer.Digest.Algorithm != "sha256" || !idPattern.MatchString(layer.Digest.Hex) {
		return landing{}, classed(errNoDisk, "a layer has the digest %q; sha256 is needed", excerpt(layer.Digest.String()))
	}
	if layer.Size <= 0 {
		return landing{}, classed(errNoDisk, "a layer has %d bytes by the manifest", layer.Size)
	}
	if layer.Size > s.opts.MaxDownload {
		return landing{}, classed(errdefs.ErrResourceExhausted, "a layer has %d bytes; downloads are limited to %d", layer.Size, s.opts.MaxDownload)
	}
	blob := &url.URL{
		Scheme: r.name.Scheme(), Host: r.name.RegistryStr(),
		Path: fmt.Sprintf("/v2/%s/blobs/%s", r.name.RepositoryStr(), layer.Digest),
	}
	j.place = &httpPlace{
		location: location{url: blob}, immutable: true, size: layer.Size,
		client: &http.Client{Transport: r.client, CheckRedirect: r.redirect.discreet},
	}
	j.partial, j.digest, j.layer = hashKey(blob.Host+blob.Path), layer.Digest.Hex, true
	if r := s.index.byOrigin(j.partial); r != nil {
		return s.claim(landing{id: r.ID, unchanged: true}, j) // known by another tag
	}
	landed, err := s.flights.do(ctx, j.partial, "", func(ctx context.Context) (landing, error) {
		return s.download(context.WithValue(ctx, blobRequest{}, true), j)
	})
	if err != nil {
		return landing{}, err
	}
	return s.claim(landed, j)
}

// blobRequest marks the context of requests whose answers may be as long as images.
type blobRequest struct{}

// registryTransport keeps a registry from sending endless manifests, tokens and
// redirects, and credentials from travelling in the clear.
type registryTransport struct {
	base     http.RoundTripper
	plain    []string // hosts that may be spoken to without TLS
	redirect redirects
}

func (t *registryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	// The registry client has redirect policies of its own, which know no limit.
	if via := hops(r); len(via) > 0 {
		if err := t.redirect(r, via); err != nil {
			return nil, err
		}
		if r.Body != nil && r.Body != http.NoBody && !sameServer(via[0].URL, r.URL) {
			return nil, classed(errdefs.ErrFailedPrecondition, "its token server redirects to %s, which must not see the credentials", excerpt(r.URL.Host))
		}
	}
	if r.URL.Scheme != schemeHTTPS && !loopback(r.URL.Hostname()) && !slices.Contains(t.plain, r.URL.Host) {
		return nil, classed(errdefs.ErrFailedPrecondition, "%s offers no TLS; list it as an insecure registry if that is meant", r.URL.Host)
	}
	response, err := t.base.RoundTrip(r)
	if err == nil && r.Context().Value(blobRequest{}) == nil {
		response.Body = &shortAnswer{ReadCloser: response.Body, left: maxManifest}
	}
	return response, err
}

// shortAnswer fails, instead of ending, at its limit.
type shortAnswer struct {
	io.ReadCloser
	left int64
}

func (a *shortAnswer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if a.left -= int64(n); a.left < 0 {
		return 0, classed(errdefs.ErrResourceExhausted, "the registry's answer has more than %d bytes; that is the limit", maxManifest)
	}
	return n, err
}

// hops are the requests whose redirects led to this one, the first one first.
func hops(r *http.Request) (via []*http.Request) {
	for r.Response != nil {
		r = r.Response.Request
		via = append(via, r)
	}
	slices.Reverse(via)
	return via
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// explainRegistry classifies an error of the registry client.
func explainRegistry(what string, err error) error {
	if status, ok := errors.AsType[*transport.Error](err); ok {
		class := classOfStatus(status.StatusCode)
		return classed(class, "fetch %s: the registry answers %d %s", what, status.StatusCode, http.StatusText(status.StatusCode))
	}
	if known, ok := errors.AsType[*classedError](err); ok {
		return fmt.Errorf("fetch %s: %w", what, known)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	if strings.HasPrefix(err.Error(), "no token in bearer response") {
		// The rest is what the server says instead, which may be the credentials.
		return classed(errdefs.ErrFailedPrecondition, "fetch %s: the token server of the registry grants no token", what)
	}
	return explainConnection(what, err)
}
