package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// backend is a CRI server with a fixed number of pods, each with one container
// that runs. It answers from memory by grpc-go's ordinary typed code, so what a
// call costs is what gRPC costs.
type backend struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	sandboxes  []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	stats      []*runtimeapi.ContainerStats
	image      *runtimeapi.Image
}

// newBackend makes a server whose IDs differ from those of another name.
func newBackend(name string, pods int) *backend {
	b := &backend{image: &runtimeapi.Image{
		Id:          "sha256:" + hexID(name+" image"),
		RepoTags:    []string{"registry.ambipod.test/application:1.0"},
		RepoDigests: []string{"registry.ambipod.test/application@sha256:" + hexID(name+" digest")},
		Size:        20 << 20,
	}}
	for i := range uint32(pods) { //nolint:gosec // a few thousand
		b.add(name, i)
	}
	return b
}

// add appends a pod as kubelet would have made it: labels and annotations are
// what makes lists long.
func (b *backend) add(name string, i uint32) {
	index := strconv.FormatUint(uint64(i), 10)
	pod := "application-7d4b9c6f5d-" + index
	uid := hexID(name + " uid " + index)[:32]
	sandbox, container := hexID(name+" sandbox "+index), hexID(name+" container "+index)
	labels := map[string]string{
		"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
		"app": "application", "pod-template-hash": "7d4b9c6f5d",
	}
	created := time.Date(2026, 1, 1, 0, 0, int(i), 0, time.UTC).UnixNano()
	b.sandboxes = append(b.sandboxes, &runtimeapi.PodSandbox{
		Id:        sandbox,
		Metadata:  &runtimeapi.PodSandboxMetadata{Name: pod, Uid: uid, Namespace: "default"},
		State:     runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: created, Labels: labels,
		Annotations: map[string]string{
			"kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z", "kubernetes.io/config.source": "api",
		},
	})
	containerLabels := map[string]string{"io.kubernetes.container.name": "application"}
	for _, key := range []string{"io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"} {
		containerLabels[key] = labels[key]
	}
	attributes := &runtimeapi.ContainerAttributes{
		Id: container, Metadata: &runtimeapi.ContainerMetadata{Name: "application"}, Labels: containerLabels,
		Annotations: map[string]string{
			"io.kubernetes.container.hash": "6f2c1a3b", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File",
			"io.kubernetes.pod.terminationGracePeriod":         "30",
			"io.kubernetes.container.ports":                    `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`,
		},
	}
	b.containers = append(b.containers, &runtimeapi.Container{
		Id: container, PodSandboxId: sandbox, Metadata: attributes.GetMetadata(),
		Image:    &runtimeapi.ImageSpec{Image: b.image.GetId(), UserSpecifiedImage: b.image.GetRepoTags()[0]},
		ImageRef: b.image.GetId(), ImageId: b.image.GetId(),
		State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: created,
		Labels: containerLabels, Annotations: attributes.GetAnnotations(),
	})
	b.stats = append(b.stats, &runtimeapi.ContainerStats{
		Attributes: attributes,
		Cpu:        &runtimeapi.CpuUsage{Timestamp: created, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: uint64(i) << 20}},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: created, WorkingSetBytes: &runtimeapi.UInt64Value{Value: uint64(i) << 20}},
	})
}

func hexID(seed string) string {
	sum := sha256.Sum256([]byte(seed))
	return hex.EncodeToString(sum[:])
}

// serveBackend answers on the socket until stdin ends: so it goes with whoever
// started it, whatever becomes of that.
func serveBackend(ctx context.Context, b *backend, socket string, stdin io.Reader) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("serve test backend: %w", err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, b)
	runtimeapi.RegisterImageServiceServer(server, b)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	_, err = io.Copy(io.Discard, stdin)
	server.Stop()
	return errors.Join(err, <-served)
}

// Version implements the CRI.
func (*backend) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: "0.1.0", RuntimeName: "bench", RuntimeVersion: "1.0", RuntimeApiVersion: "v1",
	}, nil
}

// Status implements the CRI: all is ready.
func (*backend) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
	}}}, nil
}

// RuntimeConfig implements the CRI.
func (*backend) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS},
	}, nil
}

// ReopenContainerLog implements the CRI. It is the benchmarks' call that does
// nothing: the least that a call with an ID can cost.
func (*backend) ReopenContainerLog(context.Context, *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ListPodSandbox implements the CRI, without filters.
func (b *backend) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: b.sandboxes}, nil
}

// ListContainers implements the CRI, without filters.
func (b *backend) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: b.containers}, nil
}

// ListContainerStats implements the CRI, without filters.
func (b *backend) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: b.stats}, nil
}

// ListImages implements the CRI, without filters.
func (b *backend) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{b.image}}, nil
}

// ImageFsInfo implements the CRI.
func (*backend) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: &runtimeapi.UInt64Value{Value: 1},
	}}}, nil
}
