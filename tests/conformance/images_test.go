package main

import (
	"archive/tar"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// fill pushes all stand-ins into a registry and returns its address.
func fill(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New())
	t.Cleanup(server.Close)
	address := strings.TrimPrefix(server.URL, "http://")
	userland := []file{dir("etc/", 0o755), text("etc/passwd", accounts), text("etc/group", groups)}
	if err := pushAll(t.Context(), address, userland, images([]byte("program"))); err != nil {
		t.Fatal(err)
	}
	return address
}

func pull(t *testing.T, address, reference string) v1.Image {
	t.Helper()
	ref, err := name.ParseReference(address+"/"+reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func id(t *testing.T, image v1.Image) string {
	t.Helper()
	hash, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

// modes returns the image's files with their modes, later layers winning.
func modes(t *testing.T, image v1.Image) map[string]int64 {
	t.Helper()
	tree := mutate.Extract(image)
	defer func() { _ = tree.Close() }()
	found := map[string]int64{}
	for r := tar.NewReader(tree); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(header.Name, "/")] = header.Mode
	}
}

func TestImagesDifferAndTagsAgree(t *testing.T) {
	address := fill(t)
	owner := map[string]string{}
	for _, i := range images([]byte("program")) {
		tags := i.tags
		if len(tags) == 0 {
			tags = []string{"latest"}
		}
		var ids []string
		for _, tag := range tags {
			ids = append(ids, id(t, pull(t, address, i.repository+":"+tag)))
		}
		for _, other := range ids {
			if other != ids[0] {
				t.Errorf("%s has several images: %v", i.repository, ids)
			}
		}
		name := i.repository + ":" + tags[0]
		if first, taken := owner[ids[0]]; taken {
			t.Errorf("%s is the same image as %s; removing one would remove the other", name, first)
		}
		owner[ids[0]] = name
	}
}

func TestPropertiesThatSpecsLookAt(t *testing.T) {
	address := fill(t)
	users := map[string]string{}
	for _, repository := range []string{
		"test-image-user-uid", "test-image-user-username", "test-image-user-uid-group", "test-image-user-username-group",
	} {
		config, err := pull(t, address, criTools+repository+":latest").ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		users[repository] = config.Config.User
	}
	want := map[string]string{
		"test-image-user-uid": "1002", "test-image-user-username": "www-data",
		"test-image-user-uid-group": "1003:1004", "test-image-user-username-group": "www-data:1004",
	}
	if diff := cmp.Diff(want, users); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
	if mode := modes(t, pull(t, address, e2e+"nonewprivs:1.3"))["nonewprivs"]; mode != 0o4755 {
		t.Errorf("nonewprivs has mode %o, want a setuid program", mode)
	}
	if _, found := modes(t, pull(t, address, "pause:3.9"))["etc/passwd"]; found {
		t.Error("the pause image has a userland")
	}
}

func TestLayersAreReproducible(t *testing.T) {
	files := []file{dir("a/", 0o755), text("a/b", "text"), {path: "a/c", mode: 0o755, kind: tar.TypeLink, link: "a/b"}}
	one, err := packLayer(files)
	if err != nil {
		t.Fatal(err)
	}
	two, err := packLayer(files)
	if err != nil {
		t.Fatal(err)
	}
	if string(one) != string(two) {
		t.Error("two layers of the same files differ")
	}
}
