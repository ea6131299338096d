package criserver

import (
	"context"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
)

// ImageStatus describes an image by any of its names; an unknown one has no image in
// the answer, which is no error (CRI, ImageStatus).
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	image, err := s.Images.Resolve(req.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ImageStatusResponse{Image: criImage(image)}
	if req.GetVerbose() {
		response.Info, err = infoMap(map[string]any{"image": image})
		if err != nil {
			return nil, err
		}
	}
	return response, nil
}

func criImage(image imagestore.Image) *runtimeapi.Image {
	return &runtimeapi.Image{
		Id:          image.ID,
		RepoTags:    image.Names,
		RepoDigests: image.Digests,
		Size:        uint64(image.Size), //nolint:gosec // sizes are positive
		Spec:        &runtimeapi.ImageSpec{Image: image.ID},
	}
}
