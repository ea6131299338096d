package criserver

import (
	"context"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/imagestore"
)

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.matchingImages(req.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	response := &runtimeapi.ListImagesResponse{}
	for _, image := range images {
		response.Images = append(response.Images, criImage(image))
	}
	return response, nil
}

func (s *Server) matchingImages(name string) ([]imagestore.Image, error) {
	if name == "" {
		return s.Images.List()
	}
	image, err := s.Images.Resolve(name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return []imagestore.Image{image}, err
}
