package vmctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/statushttp"
)

// Image is a disk image of the node.
type Image struct {
	ID           string    `json:"id"`
	Names        []string  `json:"names"`
	Digests      []string  `json:"digests"`
	Format       string    `json:"format"`
	SizeBytes    int64     `json:"sizeBytes"`    // of the stored file
	VirtualBytes int64     `json:"virtualBytes"` // that the guest sees
	PulledAt     time.Time `json:"pulledAt"`
	Users        []string  `json:"users"` // VMs made from it, as namespace/pod
}

// ListImages returns the disk images of the node, sorted by name, and who uses them.
func (n *Node) ListImages(ctx context.Context) ([]Image, error) {
	answer, err := n.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images at %s: %w", n.Socket, Native(err))
	}
	vms, err := n.List(ctx)
	if err != nil {
		return nil, err
	}
	images := []Image{}
	for _, one := range answer.GetImages() {
		if !n.isVM(one.GetId()) {
			continue
		}
		image, err := n.image(ctx, one)
		if err != nil {
			return nil, err
		}
		for _, vm := range vms {
			if vm.ImageID == image.ID {
				image.Users = append(image.Users, vm.Name())
			}
		}
		images = append(images, image)
	}
	slices.SortFunc(images, func(a, b Image) int {
		return cmp.Or(slices.Compare(a.Names, b.Names), cmp.Compare(a.ID, b.ID))
	})
	return images, nil
}

// image adds what only the verbose status has.
func (n *Node) image(ctx context.Context, one *runtimeapi.Image) (Image, error) {
	image := Image{
		ID: one.GetId(), Names: one.GetRepoTags(), Digests: one.GetRepoDigests(),
		SizeBytes: int64(one.GetSize()), Users: []string{}, //nolint:gosec // sizes are far smaller
	}
	status, err := n.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: one.GetId()}, Verbose: true})
	if err != nil {
		return Image{}, fmt.Errorf("status of image %s: %w", one.GetId(), Native(err))
	}
	var stored imagestore.Image
	// Another version may tell it otherwise: then it stays empty.
	if json.Unmarshal([]byte(status.GetInfo()["image"]), &stored) == nil {
		image.Format, image.VirtualBytes, image.PulledAt = string(stored.Format), stored.VirtualSize, stored.PulledAt
	}
	return image, nil
}

// WriteImages prints images in one of the formats.
func WriteImages(to io.Writer, format string, images []Image, now time.Time) error {
	switch format {
	case FormatTable:
		rows := [][]string{{"NAME", "ID", "FORMAT", "SIZE", "DISK", "AGE", "USED BY"}}
		for _, image := range images {
			rows = append(rows, image.row(now))
		}
		return writeTable(to, rows)
	case FormatName:
		for _, image := range images {
			if _, err := fmt.Fprintln(to, image.name()); err != nil {
				return err
			}
		}
		return nil
	}
	return WriteDocument(to, format, struct {
		Items []Image `json:"items"`
	}{images})
}

func (i Image) name() string {
	if len(i.Names) > 0 {
		return i.Names[0]
	}
	return i.ID
}

func (i Image) row(now time.Time) []string {
	pulled, virtual := nothing, nothing
	if !i.PulledAt.IsZero() {
		pulled, virtual = age(now.Sub(i.PulledAt)), size(i.VirtualBytes)
	}
	name := i.name()
	if more := len(i.Names) - 1; more > 0 {
		name += fmt.Sprintf(" (+%d)", more)
	}
	return []string{name, VM{ContainerID: i.ID}.ShortID(), orNothing(i.Format), size(i.SizeBytes), virtual, pulled, orNothing(strings.Join(i.Users, ","))}
}

// RemoveImage removes an image by any of its names. VMs that use it keep its disk.
// Errors: errdefs.ErrNotFound.
func (n *Node) RemoveImage(ctx context.Context, name string) error {
	spec := &runtimeapi.ImageSpec{Image: name}
	status, err := n.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err == nil && status.GetImage() == nil {
		return fmt.Errorf("no image is called %q, `vmctl images` lists them: %w", name, errdefs.ErrNotFound)
	}
	if err == nil {
		_, err = n.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
	}
	if err != nil {
		return fmt.Errorf("remove image %q: %w", name, Native(err))
	}
	return nil
}

// Pull fetches an image and shows how it goes on; it returns the image's ID. Without
// status pages it fetches all the same.
func (n *Node) Pull(ctx context.Context, name string, auth *runtimeapi.AuthConfig, show *Progress) (string, error) {
	type result struct {
		answer *runtimeapi.PullImageResponse
		err    error
	}
	results := make(chan result, 1)
	go func() {
		answer, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}, Auth: auth})
		results <- result{answer, err}
	}()
	status, err := n.Status(ctx)
	if err != nil {
		show.note(err)
	}
	tick := time.NewTicker(show.interval())
	defer tick.Stop()
	for {
		select {
		case r := <-results:
			show.end()
			if r.err != nil {
				return "", fmt.Errorf("pull %s: %w", name, Native(r.err))
			}
			return r.answer.GetImageRef(), nil
		case <-tick.C:
		}
		if status == nil {
			continue
		}
		downloads, err := status.Downloads(ctx)
		if err != nil {
			status = nil
			show.note(err)
			continue
		}
		show.update(ofImage(downloads, name))
	}
}

// ofImage picks the download of one image.
func ofImage(downloads []statushttp.Download, name string) []statushttp.Download {
	if ref, err := imagestore.ParseReference(name); err == nil {
		name = ref.String()
	}
	return slices.DeleteFunc(downloads, func(d statushttp.Download) bool { return d.Name != name })
}

// WatchDownloads shows all downloads until the context ends, which is no error.
func (n *Node) WatchDownloads(ctx context.Context, show *Progress) error {
	status, err := n.Status(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(show.interval())
	defer tick.Stop()
	for {
		downloads, err := status.Downloads(ctx)
		if ctx.Err() != nil {
			show.end()
			return nil // the end was asked for
		}
		if err != nil {
			return err
		}
		show.update(downloads)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
