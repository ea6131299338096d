package imagestore

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
)

// ociServer is a registry in this process, with a handler in front.
type ociServer struct {
	*httptest.Server

	blobs atomic.Int64 // downloads of blobs
	front func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func serveOCI(t testing.TB) *ociServer {
	t.Helper()
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := &ociServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/sha256:") && r.Method == http.MethodGet {
			s.blobs.Add(1)
		}
		if s.front != nil {
			s.front(w, r, store)
			return
		}
		store.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *ociServer) host() string { return strings.TrimPrefix(s.URL, "http://") }

// name is the image name of a repository of the registry.
func (s *ociServer) name(repository string) string {
	return Prefix + "oci/" + strings.Replace(s.host(), ":", "__", 1) + "/" + repository
}

// push stores an image or an index and returns its digest.
func (s *ociServer) push(t testing.TB, tag string, what remote.Taggable) string {
	t.Helper()
	ref, err := name.NewTag(s.host() + "/" + tag)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Transport{}
	defer client.CloseIdleConnections()
	switch what := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what, remote.WithTransport(client), remote.WithContext(t.Context()))
	case v1.Image:
		err = remote.Write(ref, what, remote.WithTransport(client), remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := what.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	return sum(raw)
}

// entry is a file of a layer; without content it is a folder, or a link to target.
type entry struct {
	name    string
	content []byte
	target  string
}

func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		switch {
		case e.target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
		case e.content == nil:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image makes an image of layers, the lowest first, of the type that fits them.
func ociImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	image := empty.Image
	for _, content := range layers {
		kind := types.DockerUncompressedLayer
		if wrapping(content) == wrapperGzip {
			kind = types.DockerLayer
		}
		var err error
		if image, err = mutate.AppendLayers(image, static.NewLayer(content, kind)); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

// artifact makes an OCI artifact of files by title.
func artifact(t testing.TB, files map[string][]byte) v1.Image {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.oci.empty.v1+json")
	for title, content := range files {
		var err error
		image, err = mutate.Append(image, mutate.Addendum{
			Layer:       static.NewLayer(content, "application/octet-stream"),
			Annotations: map[string]string{titleKey: title},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return image
}

func TestOCIImages(t *testing.T) {
	disk := imagetest.QCOW2("oci")
	container := tarball(t, entry{name: "disk"}, entry{name: "disk/disk.qcow2", content: disk})
	other := tarball(t, entry{name: "etc"}, entry{name: "etc/motd", content: []byte("hello")})
	platforms := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: ociImage(t, tarball(t, entry{name: "disk/x", content: imagetest.QCOW2("foreign")})), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "other"}}},
		mutate.IndexAddendum{Add: ociImage(t, other), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
		mutate.IndexAddendum{Add: ociImage(t, container), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	for name, what := range map[string]remote.Taggable{
		"container disk":              ociImage(t, container),
		"container disk in gzip":      ociImage(t, gzipped(t, container)),
		"container disk in zstd":      ociImage(t, zstded(t, container)),
		"disk with leading slash":     ociImage(t, tarball(t, entry{name: "/disk/disk.qcow2", content: disk})),
		"disk with leading dot":       ociImage(t, tarball(t, entry{name: "./disk/disk.qcow2", content: disk})),
		"disk in the lower layer":     ociImage(t, container, other),
		"disk in the upper layer":     ociImage(t, tarball(t, entry{name: "disk/disk.qcow2", content: imagetest.QCOW2("old")}), container),
		"index":                       platforms,
		"index in an index":           mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: platforms}),
		"artifact":                    artifact(t, map[string][]byte{"disk.qcow2": disk}),
		"artifact in xz":              artifact(t, map[string][]byte{"disk.qcow2.xz": xzed(t, disk)}),
		"artifact with other files":   artifact(t, map[string][]byte{"disk.qcow2": disk, "README.md": []byte("read me")}),
		"disk as layer of an image":   ociImage(t, disk),
		"artifact without any title":  artifact(t, map[string][]byte{"": disk}),
		"artifact with a layer's tar": artifact(t, map[string][]byte{"layer": container}),
	} {
		t.Run(name, func(t *testing.T) {
			srv := serveOCI(t)
			digest := srv.push(t, "repo/disk:v1", what)
			s := openStore(t)
			image := pull(t, s, srv.name("repo/disk:v1"))
			if image.ID != sum(disk) || image.Format != FormatQCOW2 {
				t.Errorf("image %+v; want %s", image, sum(disk))
			}
			if want := []string{srv.name("repo/disk@sha256:" + digest)}; !cmp.Equal(image.Digests, want) {
				t.Errorf("digests %q; want that of the manifest %q", image.Digests, want)
			}
			downloads := srv.blobs.Load()
			again := pull(t, s, srv.name("repo/disk@sha256:"+digest))
			if again.ID != image.ID || srv.blobs.Load() != downloads {
				t.Errorf("pull by digest: %s with %d more downloads", again.ID, srv.blobs.Load()-downloads)
			}
			if left := files(t, s); len(left) != 2 {
				t.Errorf("files %q", left)
			}
		})
	}
}

func TestOCITagMoves(t *testing.T) {
	srv := serveOCI(t)
	s := openStore(t)
	layer := func(mark string) []byte {
		return tarball(t, entry{name: "disk/d", content: imagetest.QCOW2(mark)})
	}
	srv.push(t, "repo:v1", ociImage(t, layer("1")))
	first := pull(t, s, srv.name("repo:v1"))
	srv.push(t, "repo:v1", ociImage(t, layer("2")))
	second := pull(t, s, srv.name("repo:v1"))
	if first.ID == second.ID {
		t.Error("the tag did not move")
	}
	// Another manifest with the same layer costs no download.
	labelled, err := mutate.Config(ociImage(t, layer("2")), v1.Config{Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	srv.push(t, "repo:v2", labelled)
	downloads := srv.blobs.Load()
	if third := pull(t, s, srv.name("repo:v2")); third.ID != second.ID || len(third.Names) != 2 || len(third.Digests) != 2 {
		t.Errorf("image %+v", third)
	}
	if got := srv.blobs.Load() - downloads; got != 0 {
		t.Errorf("%d downloads of a blob that is known", got)
	}
}

func TestManyOCIPullsShareOneDownload(t *testing.T) {
	srv := serveOCI(t)
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: imagetest.QCOW2("a")})))
	release := make(chan struct{})
	srv.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-release
		}
		next.ServeHTTP(w, r)
	}
	s := openStore(t)
	var done sync.WaitGroup
	for range 10 {
		done.Go(func() {
			if _, err := s.Pull(t.Context(), srv.name("repo:v1"), Credentials{}); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the blob is asked for", func() bool { return srv.blobs.Load() > 0 })
	close(release)
	done.Wait()
	if got := srv.blobs.Load(); got != 1 {
		t.Errorf("%d downloads of the blob, want 1", got)
	}
}

func TestOCIResume(t *testing.T) {
	srv := serveOCI(t)
	disk := noisy(imagetest.Raw("resume", 1<<20))
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: disk})))
	var ranges []string
	srv.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		ranges = append(ranges, r.Header.Get("Range"))
		all := httptest.NewRecorder()
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		next.ServeHTTP(all, plain)
		content, first := all.Body.Bytes(), 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(content)-1, len(content)))
			w.Header().Set("Content-Length", fmt.Sprint(len(content)-first))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(content[first:])
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:400_000])
	}
	s := openStore(t)
	if image := pull(t, s, srv.name("repo:v1")); image.ID != sum(disk) {
		t.Errorf("image %s", image.ID)
	}
	if want := []string{"", "bytes=400000-"}; !cmp.Equal(ranges, want) {
		t.Errorf("ranges %q, want %q", ranges, want)
	}
}

func TestOCICredentials(t *testing.T) {
	srv := serveOCI(t)
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: imagetest.QCOW2("a")})))
	basic := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
	bearer := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			_ = r.ParseForm()
			user, password, _ := r.BasicAuth()
			if r.PostForm.Get("refresh_token") != secret && (user != "u" || password != secret) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"access_token": "granted", "token": "granted"})
			return
		}
		if auth := r.Header.Get("Authorization"); auth != "Bearer granted" && auth != "Bearer "+secret {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
	for _, tc := range []struct {
		name  string
		front func(http.ResponseWriter, *http.Request, http.Handler)
		given Credentials
		fails bool
	}{
		{"basic", basic, Credentials{Username: "u", Password: secret}, false},
		{"basic without", basic, Credentials{}, true},
		{"basic for another host", basic, Credentials{Username: "u", Password: secret, ServerAddress: "example.org"}, true},
		{"token by password", bearer, Credentials{Username: "u", Password: secret}, false},
		{"token by identity token", bearer, Credentials{IdentityToken: secret}, false},
		{"registry token", bearer, Credentials{RegistryToken: secret}, false},
		{"token with wrong password", bearer, Credentials{Username: "u", Password: "wrong"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv.front = tc.front
			s := openStore(t)
			_, err := s.Pull(t.Context(), srv.name("repo:v1"), tc.given)
			if !tc.fails {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkRefusal(t, err, errdefs.IsUnauthorized, "401 Unauthorized")
			wantEmpty(t, s)
		})
	}
}

func TestHostileRegistries(t *testing.T) {
	disk := imagetest.QCOW2("hostile")
	good := ociImage(t, tarball(t, entry{name: "disk/d", content: disk}))
	deep := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: good})
	for range 3 {
		deep = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: deep})
	}
	foreign := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: good, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "other"}}})
	fitting := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: good, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	manifest := func(change string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = io.WriteString(w, change)
		}
	}
	blob := func(act http.HandlerFunc) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				act(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	manifests := func(act http.HandlerFunc) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				act(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	drip := func(w http.ResponseWriter, r *http.Request) {
		for range time.Tick(hostileStall / 20) {
			if _, err := io.WriteString(w, " "); err != nil || r.Context().Err() != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
	layers := func(n int, digest string) string {
		one := fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":%q,"size":5}`, digest)
		return fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"a/b"},"layers":[%s]}`, strings.TrimSuffix(strings.Repeat(one+",", n), ","))
	}
	inTar := func(entries ...entry) v1.Image { return ociImage(t, tarball(t, entries...)) }
	sparse := tarball(t, entry{name: "disk/d", content: append(bytes.Clone(disk), make([]byte, hostileMaxSize)...)})

	for _, tc := range []struct {
		name  string
		what  remote.Taggable
		front func(http.ResponseWriter, *http.Request, http.Handler)
		tag   string
		class func(error) bool
		why   string
	}{
		{name: "no such tag", what: good, tag: "repo:none", class: errdefs.IsNotFound, why: "404"},
		{name: "no such digest", what: good, tag: "repo@sha256:" + sum(nil), class: errdefs.IsNotFound, why: "404"},
		{name: "index too deep", what: deep, class: errdefs.IsInvalidArgument, why: "more than 2 further ones"},
		{name: "index without this processor", what: foreign, class: errdefs.IsNotFound, why: "no image for linux/"},
		{name: "huge manifest", what: good, front: manifest(strings.Repeat(" ", maxManifest) + "{}"), class: errdefs.IsResourceExhausted, why: "that is the limit"},
		{name: "manifest is a web page", what: good, front: manifest("<html>"), class: errdefs.IsInvalidArgument, why: "cannot be read"},
		{name: "other manifest than the digest says", what: good, tag: "repo@sha256:" + sum(nil), front: manifest(layers(1, "sha256:"+sum(nil))), class: errdefs.IsDataLoss, why: "sent a manifest with digest sha256:"},
		{name: "other manifest than the index says", what: fitting, front: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/sha256:") {
				manifest(layers(1, "sha256:"+sum(nil)))(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		}, class: errdefs.IsDataLoss, why: "sent a manifest with digest sha256:"},
		{name: "manifest that redirects to itself", what: good, front: manifests(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}), class: errdefs.IsFailedPrecondition, why: "redirects more than 9 times"},
		{name: "manifest that redirects to a huge one", what: good, front: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/huge" {
				_, _ = w.Write(make([]byte, maxManifest+1))
				return
			}
			manifests(http.RedirectHandler("/huge", http.StatusFound).ServeHTTP)(w, r, next)
		}, class: errdefs.IsResourceExhausted, why: "that is the limit"},
		{name: "manifest that never comes", what: good, front: manifests(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "manifest that comes too slowly", what: good, front: manifests(drip), class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "greeting that never comes", what: good, front: func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }, class: errdefs.IsUnavailable, why: "the server stopped sending"},
		{name: "layer with a long tale for a digest", what: good, front: manifest(layers(1, "sha256:"+strings.Repeat("x", 100<<10))), class: errdefs.IsInvalidArgument, why: "cannot be read"},
		{name: "layer of nothing", what: good, front: manifest(strings.Replace(layers(1, "sha256:"+sum(nil)), `"size":5`, `"size":0`, 1)), class: errdefs.IsInvalidArgument, why: "a layer has 0 bytes"},
		{name: "blob of another length", what: good, front: blob(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "300000")
			_, _ = w.Write(make([]byte, 300000))
		}), class: errdefs.IsDataLoss, why: "the server has 300000 bytes instead of"},
		{name: "blob without an end", what: good, front: blob(func(w http.ResponseWriter, r *http.Request) {
			for content := tarball(t, entry{name: "disk/d", content: disk}); r.Context().Err() == nil; {
				_, _ = w.Write(content)
			}
		}), class: errdefs.IsDataLoss, why: "instead of"},
		{name: "path that leads out by a long way", what: inTar(entry{name: strings.Repeat("../", 50<<10) + "x", content: disk}), class: errdefs.IsInvalidArgument, why: "leads out of it"},
		{name: "no layers", what: good, front: manifest(layers(0, "")), class: errdefs.IsInvalidArgument, why: "no layers"},
		{name: "too many layers", what: good, front: manifest(layers(200, "sha256:"+sum(nil))), class: errdefs.IsInvalidArgument, why: "200 layers"},
		{name: "layer with other hash", what: good, front: manifest(layers(1, "sha512:"+strings.Repeat("a", 128))), class: errdefs.IsInvalidArgument, why: "sha256 is needed"},
		{name: "layer with a path for a digest", what: good, front: manifest(layers(1, "sha256:../../../../etc/passwd")), class: errdefs.IsInvalidArgument, why: ""},
		{name: "layer over the limit", what: good, front: manifest(strings.Replace(layers(1, "sha256:"+sum(nil)), `"size":5`, `"size":5000000000000`, 1)), class: errdefs.IsResourceExhausted, why: "5000000000000"},
		{name: "several disks by title", what: artifact(t, map[string][]byte{"a.qcow2": disk, "b.img": disk}), class: errdefs.IsInvalidArgument, why: "exactly one is needed"},
		{name: "no disk by title", what: artifact(t, map[string][]byte{"a": disk, "b": disk}), class: errdefs.IsInvalidArgument, why: "of which 0 are disks"},
		{name: "missing blob", what: good, front: blob(http.NotFound), class: errdefs.IsNotFound, why: "404"},
		{name: "other blob", what: good, front: blob(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk) }), class: errdefs.IsDataLoss, why: "instead of"},
		{name: "container image", what: inTar(entry{name: "bin"}, entry{name: "bin/sh", content: []byte("#!")}), class: errdefs.IsInvalidArgument, why: "no file in /disk of any layer"},
		{name: "two disks", what: inTar(entry{name: "disk/a", content: disk}, entry{name: "disk/b", content: disk}), class: errdefs.IsInvalidArgument, why: "several files in /disk"},
		{name: "path that leads out", what: inTar(entry{name: "../../../etc/cron.d/x", content: disk}), class: errdefs.IsInvalidArgument, why: "leads out of it"},
		{name: "path that leads out and back", what: inTar(entry{name: "disk/../../disk/d", content: disk}), class: errdefs.IsInvalidArgument, why: "leads out of it"},
		{name: "disk is a link", what: inTar(entry{name: "disk/d", target: "/etc/shadow"}), class: errdefs.IsInvalidArgument, why: "no regular file"},
		{name: "disk deeper than /disk", what: inTar(entry{name: "disk/sub/d", content: disk}), class: errdefs.IsInvalidArgument, why: "no file in /disk"},
		{name: "disk is no disk", what: inTar(entry{name: "disk/d", content: []byte("hello")}), class: errdefs.IsInvalidArgument, why: "neither a boot sector"},
		{name: "disk with backing file", what: inTar(entry{name: "disk/d", content: imagetest.With(disk, imagetest.BackingOffset, 9)}), class: errdefs.IsInvalidArgument, why: "backing file"},
		{name: "disk in gzip in a layer", what: inTar(entry{name: "disk/d", content: gzipped(t, disk)}), class: errdefs.IsInvalidArgument, why: "a gzip file"},
		{name: "disk over the limit", what: ociImage(t, gzipped(t, sparse)), class: errdefs.IsResourceExhausted, why: "at most"},
		{name: "layer cut short", what: ociImage(t, tarball(t, entry{name: "disk/d", content: disk})[:100000]), class: errdefs.IsInvalidArgument, why: "damaged tar archive"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := serveOCI(t)
			srv.push(t, "repo:v1", tc.what)
			srv.front = tc.front
			s := openStore(t, func(o *Options) { o.MaxSize, o.StallTimeout = hostileMaxSize, hostileStall })
			tag := tc.tag
			if tag == "" {
				tag = "repo:v1"
			}
			_, err := s.Pull(t.Context(), srv.name(tag), Credentials{})
			checkRefusal(t, err, tc.class, tc.why)
			wantEmpty(t, s)
		})
	}
}

// TestManifestElsewhereWithoutTLS has a registry with TLS redirect to a server without.
func TestManifestElsewhereWithoutTLS(t *testing.T) {
	srv := serveOCI(t)
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: imagetest.QCOW2("a")})))
	down, reached := false, false
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down && strings.Contains(r.URL.Path, "/manifests/") {
			http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusFound)
			return
		}
		srv.Config.Handler.ServeHTTP(w, r)
	}))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	dir := t.TempDir()
	writeTranslation(t, dir, fmt.Sprintf(`
translations: [{name: d, url: 'oci://%s/repo:v1', transport: p}]
transports: {p: {tls: {insecure: true}}}
`, strings.TrimPrefix(secure.URL, "https://")))
	s := openStore(t, func(o *Options) { o.TranslationDirs = []string{dir} })
	pull(t, s, Prefix+"d") // without the redirect
	down = true
	_, err := s.Pull(t.Context(), Prefix+"d", Credentials{})
	checkRefusal(t, err, errdefs.IsFailedPrecondition, "redirects from https to http")
	if reached {
		t.Error("the server without TLS was asked")
	}
}

// TestRegistryWithoutTLSByName has a proxy play a registry that has a name.
func TestRegistryWithoutTLSByName(t *testing.T) {
	srv := serveOCI(t)
	disk := imagetest.QCOW2("a")
	srv.push(t, "repo:v1", ociImage(t, tarball(t, entry{name: "disk/d", content: disk})))
	srv.front = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodConnect { // it has no TLS
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		next.ServeHTTP(w, r)
	}
	dir := t.TempDir()
	writeTranslation(t, dir, fmt.Sprintf(`
translations: [{name: d, url: 'oci://registry.test:5000/repo:v1', transport: proxy}]
transports: {proxy: {proxy: '%s'}}
`, srv.URL))
	listed := func(hosts ...string) *Store {
		return openStore(t, func(o *Options) { o.TranslationDirs, o.InsecureRegistries = []string{dir}, hosts })
	}
	if image := pull(t, listed("registry.test:5000"), Prefix+"d"); image.ID != sum(disk) {
		t.Errorf("image %s", image.ID)
	}
	s := listed("registry.test")
	if _, err := s.Pull(t.Context(), Prefix+"d", Credentials{}); err == nil {
		t.Error("a registry that is not listed was spoken to without TLS")
	}
	wantEmpty(t, s)
}

func TestRegistryWithoutTLSIsRefused(t *testing.T) {
	guarded := &registryTransport{plain: []string{"known.example:5000"}, base: roundTrip(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("reached %s", r.URL.Host)
	})}
	for url, reached := range map[string]bool{
		"http://registry.example/v2/":   false,
		"http://10.1.2.3:5000/v2/":      false,
		"http://known.example/v2/":      false,
		"https://registry.example/v2/":  true,
		"http://known.example:5000/v2/": true,
		"http://127.0.0.1:5000/v2/":     true,
		"http://[::1]:5000/v2/":         true,
		"http://localhost/v2/":          true,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := guarded.RoundTrip(request)
		if err == nil {
			response.Body.Close()
		}
		if got := strings.Contains(fmt.Sprint(err), "reached"); got != reached {
			t.Errorf("%s: %v; want it let through: %v", url, err, reached)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
