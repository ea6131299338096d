package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/tests/defaultcgroup"
	"github.com/ambipod/ambipod/tests/node"
)

// containerRounds is how many pods and images live and go on each side.
const containerRounds = 80

// shortOperation is so short that the few tenths of a millisecond that criproxy takes
// after a rest are more than the target allows; for those the table has the price of a
// byte relay beside criproxy's, and no target.
const shortOperation = 5 * time.Millisecond

// measureContainers compares the life of pods, containers and images in containerd,
// directly, through criproxy, and through a relay that only copies bytes.
func measureContainers(ctx context.Context, e environment) (_ section, err error) {
	s := section{
		Name: "containers", Base: "containerd", Ours: "through criproxy", Hop: "through a byte relay",
		Title: "The operations of critest -benchmark with containerd, directly and through criproxy, medians",
	}
	cgroups, err := defaultcgroup.Take()
	if err != nil {
		return s, err
	}
	n, err := node.Start(ctx, node.Config{
		Checkout: e.checkout,
		Name:     "bench",
		Without:  []string{node.ImageSite, node.Containerd, node.Libvirtd, node.VMRuntime, node.CRIProxy, node.Kubelet},
	})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, stopNode(ctx, n), cgroups.RemoveNew()) }()
	if err := startInMemory(ctx, n); err != nil {
		return s, err
	}
	relay := &rig{}
	defer func() { err = errors.Join(err, relay.stop(ctx)) }()
	if relay.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return s, fmt.Errorf("make folder for the byte relay: %w", err)
	}
	if err := relay.startSelf(ctx, "bytes", "bytes", "-backend", n.ContainerdSocket()); err != nil {
		return s, err
	}
	var sides []*side
	for _, way := range []struct{ name, socket string }{
		{"direct", n.ContainerdSocket()}, {"proxied", n.CRIProxySocket()}, {"relayed", relay.socket("bytes")},
	} {
		side, err := dialSide(ctx, n, way.socket, way.name)
		if err != nil {
			return s, err
		}
		defer func() { _ = side.conn.Close() }()
		sides = append(sides, side)
	}
	all := operations()
	for i := range containerRounds + 1 {
		if err := lifecycle(ctx, sides, i); err != nil {
			return s, err
		}
		const every = 10
		if i > 0 && i%every == 0 {
			_, _ = fmt.Fprintf(e.out, "    %d of %d rounds done\n", i, containerRounds)
		}
	}
	for i, o := range all {
		s.Rows = append(s.Rows, operationRow(o.name, sides[0].took[i], sides[1].took[i], sides[2].took[i]))
	}
	return s, nil
}

// startInMemory starts containerd with its folders in memory, and criproxy. On a disk
// the same operation takes now twice and now half as long, and nothing of a twentieth
// is to be seen.
func startInMemory(ctx context.Context, n *node.Node) error {
	if err := unix.Mount("bench", filepath.Join(n.Root(), "containerd"), "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount memory for containerd: %w", err)
	}
	return errors.Join(n.StartDaemon(ctx, node.Containerd), n.StartDaemon(ctx, node.CRIProxy))
}

// operationRow compares an operation through criproxy with the operation itself, and
// shows what a byte relay makes of it.
func operationRow(what string, direct, proxied, relayed []time.Duration) row {
	var atMost limit = 1.05
	ours, hop := pair{direct, proxied}.byDifference(), pair{direct, relayed}.byDifference()
	if ours.Base < milliseconds(shortOperation) {
		atMost = 0
	}
	r := ratioRow(what, ours, atMost)
	r.Hop = fmt.Sprintf("%s, %.2f×", formatMS(hop.Ours), hop.Ratio)
	if atMost == 0 {
		r.Target = "the hop"
	}
	return r
}

// lifecycle does every operation on all sides, one right after the other. Round 0 is
// the warm-up and not recorded.
func lifecycle(ctx context.Context, sides []*side, round int) error {
	for i, o := range operations() {
		for j := range sides {
			s := sides[turn(round+i, j, len(sides))]
			t, err := timed(func() error { return o.do(ctx, s) })
			if err != nil {
				return fmt.Errorf("%s on side %s: %w", o.name, s.name, err)
			}
			if round > 0 {
				s.took[i] = append(s.took[i], t)
			}
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
	took      [][]time.Duration // by operation, in the order of operations
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
		took:   make([][]time.Duration, len(operations())),
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
