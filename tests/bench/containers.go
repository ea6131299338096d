package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/defaultcgroup"
	"github.com/ambipod/ambipod/tests/node"
)

// containerRounds is how many pods and images live and go on each side.
const containerRounds = 50

// measureContainers compares the life of pods, containers and images in
// containerd, directly and through criproxy.
func measureContainers(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "containers", Base: "containerd", Ours: "through criproxy",
		Title: "The operations of critest -benchmark with containerd, directly and through criproxy, medians",
	}
	cgroups, err := defaultcgroup.Take()
	if err != nil {
		return s, err
	}
	n, err := node.Start(ctx, node.Config{
		Checkout: e.checkout,
		Name:     "bench",
		Without:  []string{node.ImageSite, node.Libvirtd, node.VMRuntime, node.Kubelet},
	})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stopNode(ctx, n), cgroups.RemoveNew()) }()
	direct, err := dialSide(ctx, n, n.ContainerdSocket(), "direct")
	if err != nil {
		return s, err
	}
	defer func() { _ = direct.conn.Close() }()
	proxied, err := dialSide(ctx, n, n.CRIProxySocket(), "proxied")
	if err != nil {
		return s, err
	}
	defer func() { _ = proxied.conn.Close() }()
	const atMost limit = 1.05
	all := operations()
	pairs := make([]pair, len(all))
	for i := range containerRounds + 1 {
		if err := lifecycle(ctx, direct, proxied, i, pairs); err != nil {
			return s, err
		}
		const every = 10
		if i > 0 && i%every == 0 {
			_, _ = fmt.Fprintf(e.out, "    %d of %d rounds done\n", i, containerRounds)
		}
	}
	for i, o := range all {
		s.Rows = append(s.Rows, ratioRow(o.name, pairs[i].at(0.5), atMost))
	}
	return s, nil
}

// lifecycle does every operation on both sides, one right after the other. Round
// 0 is the warm-up and not recorded.
func lifecycle(ctx context.Context, direct, proxied *side, round int, pairs []pair) error {
	for i, o := range operations() {
		took := map[*side]time.Duration{}
		order := []*side{direct, proxied}
		if (round+i)%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, s := range order {
			t, err := timed(func() error { return o.do(ctx, s) })
			if err != nil {
				return fmt.Errorf("%s on side %s: %w", o.name, s.name, err)
			}
			took[s] = t
		}
		if round > 0 {
			pairs[i].base = append(pairs[i].base, took[direct])
			pairs[i].ours = append(pairs[i].ours, took[proxied])
		}
	}
	return nil
}

// side is one way to containerd, with what it is working on.
type side struct {
	name      string
	conn      *grpc.ClientConn
	cri       runtimeapi.RuntimeServiceClient
	images    runtimeapi.ImageServiceClient
	pulled    *runtimeapi.ImageSpec // an image that only this side pulls and removes
	pod       *runtimeapi.PodSandboxConfig
	sandbox   string
	container string
}

// dialSide connects, and makes an image for this side in the node's registry.
func dialSide(ctx context.Context, n *node.Node, socket, name string) (*side, error) {
	repository := "bench/" + name
	if err := pushImage(ctx, n.RegistryAddress()+"/"+repository+":latest"); err != nil {
		return nil, err
	}
	conn, err := node.Dial(socket)
	if err != nil {
		return nil, err
	}
	s := &side{
		name: name, conn: conn,
		cri: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn),
		pulled: &runtimeapi.ImageSpec{Image: "registry.ambipod.test/" + repository + ":latest"},
	}
	// What containers run is there before anything is measured.
	_, err = s.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.ContainerImage}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pull %s: %w", node.ContainerImage, err), conn.Close())
	}
	return s, nil
}

// pushImage puts an image of some size into a registry.
func pushImage(ctx context.Context, reference string) error {
	const (
		layerBytes = 1 << 20
		layers     = 3
	)
	image, err := random.Image(layerBytes, layers)
	if err != nil {
		return fmt.Errorf("make an image to pull: %w", err)
	}
	ref, err := name.NewTag(reference, name.Insecure)
	if err != nil {
		return fmt.Errorf("push an image to pull: %w", err)
	}
	if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push an image to pull: %w", err)
	}
	return nil
}

func stopNode(ctx context.Context, n *node.Node) error {
	const patience = 2 * time.Minute
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return n.Stop(ctx)
}

// operation is one of those that critest -benchmark measures.
type operation struct {
	name string
	do   func(context.Context, *side) error
}

// operations are in the order of a pod's life, as critest calls them.
func operations() []operation {
	return []operation{
		{"RunPodSandbox", runSandbox},
		{"PodSandboxStatus", func(ctx context.Context, s *side) error {
			_, err := s.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.sandbox, Verbose: true})
			return err
		}},
		{"CreateContainer", createContainer},
		{"StartContainer", func(ctx context.Context, s *side) error {
			_, err := s.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.container})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context, s *side) error {
			_, err := s.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.container, Verbose: true})
			return err
		}},
		{"StopContainer", func(ctx context.Context, s *side) error {
			const grace = 60 // seconds, as critest
			_, err := s.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: s.container, Timeout: grace})
			return err
		}},
		{"RemoveContainer", func(ctx context.Context, s *side) error {
			_, err := s.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: s.container})
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context, s *side) error {
			_, err := s.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.sandbox})
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context, s *side) error {
			_, err := s.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.sandbox})
			return err
		}},
		{"PullImage", func(ctx context.Context, s *side) error {
			_, err := s.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: s.pulled})
			return err
		}},
		{"ImageStatus", func(ctx context.Context, s *side) error {
			_, err := s.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: s.pulled})
			return err
		}},
		{"ListImages", func(ctx context.Context, s *side) error {
			_, err := s.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			return err
		}},
		{"RemoveImage", func(ctx context.Context, s *side) error {
			_, err := s.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: s.pulled})
			return err
		}},
	}
}

func runSandbox(ctx context.Context, s *side) error {
	s.pod = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "bench", Namespace: "default", Uid: uuid.NewString()},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{},
	}
	answer, err := s.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.pod})
	s.sandbox = answer.GetPodSandboxId()
	return err
}

func createContainer(ctx context.Context, s *side) error {
	answer, err := s.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  s.sandbox,
		SandboxConfig: s.pod,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "bench"},
			Image:    &runtimeapi.ImageSpec{Image: node.ContainerImage},
			Command:  []string{"top"}, // which ends at SIGTERM
			Linux:    &runtimeapi.LinuxContainerConfig{},
		},
	})
	s.container = answer.GetContainerId()
	return err
}
