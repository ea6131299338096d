package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// image is a stand-in for one that critest names. Its repository is the part of
// the name after the registry's host: the node's registry answers for all hosts.
type image struct {
	repository string
	tags       []string // latest if empty
	user       string
	command    []string // a shell if empty
	files      []file   // above the userland
	bare       bool     // without the userland
}

// Repositories of the two projects whose images critest uses.
const (
	e2e      = "e2e-test-images/"
	criTools = "k8s-staging-cri-tools/"
)

// images lists what critest v1.36.0 asks for, each image with the property that
// its specs look at. One is missing, because nobody can make an image with a
// given digest: criTools + "test-image-digest".
func images(standin []byte) []image {
	program := func(path string, mode int64) file {
		return file{path: path, mode: mode, kind: tar.TypeReg, text: standin}
	}
	nginx := func(port int) []file {
		return []file{
			program("usr/sbin/nginx", 0o755),
			dir("etc/nginx/", 0o755), text("etc/nginx/port", strconv.Itoa(port)+"\n"),
		}
	}
	// The same bytes under another name are another image.
	marked := func(repository string, tags ...string) image {
		return image{repository: criTools + repository, tags: tags, files: []file{text(repository+"-"+tags[0], "")}}
	}
	const hostNetworkPort = 12003
	serve := []string{"/usr/sbin/nginx"}
	return []image{
		{repository: e2e + "busybox", tags: []string{"1.29-2"}},
		{repository: e2e + "nginx", tags: []string{"1.14-2"}, command: serve, files: nginx(80)},
		{repository: criTools + "hostnet-nginx-" + runtime.GOARCH, command: serve, files: nginx(hostNetworkPort)},
		{
			repository: e2e + "httpd", tags: []string{"2.4.39-4"},
			command: []string{"/usr/sbin/httpd"}, files: []file{program("usr/sbin/httpd", 0o755)},
		},
		{
			repository: e2e + "nonewprivs", tags: []string{"1.3"},
			command: []string{"/nonewprivs"}, files: []file{program("nonewprivs", 0o4755)},
		},
		{
			repository: "pause", tags: []string{"3.9"}, bare: true,
			command: []string{"/pause"}, files: []file{program("pause", 0o755)},
		},
		{repository: criTools + "test-image-user-uid", user: "1002"},
		{repository: criTools + "test-image-user-username", user: "www-data"},
		{repository: criTools + "test-image-user-uid-group", user: "1003:1004"},
		{repository: criTools + "test-image-user-username-group", user: "www-data:1004"},
		{
			repository: criTools + "test-image-predefined-group", user: "1000",
			files: []file{text("etc/passwd", accounts+predefinedUser), text("etc/group", groups+predefinedGroup)},
		},
		marked("test-image-latest", "latest"),
		marked("test-image-tag", "test"),
		marked("test-image-tag", "all"),
		marked("test-image-1", "latest"),
		marked("test-image-2", "latest"),
		marked("test-image-3", "latest"),
		marked("test-image-tags", "1", "2", "3"),
	}
}

// pushAll fills the registry at address, a host and a port, with the images.
func pushAll(ctx context.Context, address string, userland []file, all []image) error {
	base, err := layer(userland)
	if err != nil {
		return err
	}
	for _, i := range all {
		made, err := i.build(base)
		if err != nil {
			return fmt.Errorf("build image %s: %w", i.repository, err)
		}
		tags := i.tags
		if len(tags) == 0 {
			tags = []string{"latest"}
		}
		for _, tag := range tags {
			ref, err := name.NewTag(address+"/"+i.repository+":"+tag, name.Insecure)
			if err != nil {
				return fmt.Errorf("push image %s: %w", i.repository, err)
			}
			if err := remote.Write(ref, made, remote.WithContext(ctx)); err != nil {
				return fmt.Errorf("push image %s: %w", i.repository, err)
			}
		}
	}
	return nil
}

func (i image) build(base v1.Layer) (v1.Image, error) {
	var layers []v1.Layer
	if !i.bare {
		layers = append(layers, base)
	}
	if len(i.files) > 0 {
		own, err := layer(i.files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, own)
	}
	made, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	config, err := made.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	command := i.command
	if len(command) == 0 {
		command = []string{"sh"}
	}
	config.Config = v1.Config{
		User: i.user, Cmd: command, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		// Images with equal files differ by this.
		Labels: map[string]string{"org.opencontainers.image.title": i.repository},
	}
	return mutate.ConfigFile(made, config)
}

func layer(files []file) (v1.Layer, error) {
	packed, err := packLayer(files)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(packed)), nil
	})
}
