package criserver

import (
	"fmt"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// asSeenHere is a container's configuration with the node's paths, as kubelet knows
// them, replaced by those where this process finds the same files: below root. A link
// leads where it leads on the node, never out of root. An empty root changes nothing.
func asSeenHere(root string, config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if root == "" {
		return config, nil
	}
	here := &runtimeapi.ContainerConfig{}
	for _, mount := range config.GetMounts() {
		path, err := below(root, mount.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("volume mounted at %s: %w", mount.GetContainerPath(), err)
		}
		here.Mounts = append(here.Mounts, &runtimeapi.Mount{
			HostPath: path, ContainerPath: mount.GetContainerPath(), Readonly: mount.GetReadonly(), Propagation: mount.GetPropagation(), Image: mount.GetImage(),
		})
	}
	for _, device := range config.GetDevices() {
		path, err := below(root, device.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("device %s of the container: %w", device.GetContainerPath(), err)
		}
		here.Devices = append(here.Devices, &runtimeapi.Device{HostPath: path, ContainerPath: device.GetContainerPath(), Permissions: device.GetPermissions()})
	}
	return here, nil
}

func below(root, path string) (string, error) {
	resolved, err := securejoin.SecureJoin(root, path)
	if err != nil {
		return "", fmt.Errorf("look for %s of the node below %s: %w: %w", path, root, err, errdefs.ErrInvalidArgument)
	}
	return resolved, nil
}
