package proxy

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testRuntime is a CRI server on a unix socket that keeps its objects in memory.
// It implements what the tests call; the rest is Unimplemented, as in an old
// runtime. Objects survive stop and start, as they do in a real one.
type testRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	name   string
	socket string

	mu         sync.Mutex
	server     *grpc.Server
	requests   []received
	sandboxes  []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	images     []*runtimeapi.Image
	status     *runtimeapi.StatusResponse
	driver     runtimeapi.CgroupDriver
	streams    bool // implements Stream* methods and GetContainerEvents
	events     chan *runtimeapi.ContainerEventResponse
	intercept  func(ctx context.Context, method string) error // before each call; nil: nothing
	next       int
}

// received is one call that reached a runtime.
type received struct {
	method   string
	metadata metadata.MD
	deadline time.Time
	message  proto.Message
}

func newTestRuntime(dir, name string) *testRuntime {
	return &testRuntime{
		name: name, socket: filepath.Join(dir, name+".sock"), driver: runtimeapi.CgroupDriver_CGROUPFS,
		events: make(chan *runtimeapi.ContainerEventResponse),
		status: &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true},
		}}},
	}
}

// start serves; the runtime must be stopped before.
func (r *testRuntime) start(t testing.TB) {
	t.Helper()
	listener := listenUnix(t, r.socket)
	server := grpc.NewServer(grpc.UnaryInterceptor(r.unary), grpc.StreamInterceptor(r.stream), grpc.MaxRecvMsgSize(maxMessage))
	runtimeapi.RegisterRuntimeServiceServer(server, r)
	runtimeapi.RegisterImageServiceServer(server, r)
	r.mu.Lock()
	r.server = server
	r.mu.Unlock()
	go func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("runtime %s: %v", r.name, err)
		}
	}()
	t.Cleanup(r.stop)
}

// stop is a crash: connections break and the socket goes.
func (r *testRuntime) stop() {
	r.mu.Lock()
	server := r.server
	r.server = nil
	r.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

func (r *testRuntime) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := r.note(ctx, info.FullMethod, request); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (r *testRuntime) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := r.note(stream.Context(), info.FullMethod, nil); err != nil {
		return err
	}
	return handler(server, stream)
}

func (r *testRuntime) note(ctx context.Context, full string, request any) error {
	method := filepath.Base(full)
	md, _ := metadata.FromIncomingContext(ctx)
	deadline, _ := ctx.Deadline()
	message, _ := request.(proto.Message)
	r.mu.Lock()
	r.requests = append(r.requests, received{method: method, metadata: md, deadline: deadline, message: message})
	intercept := r.intercept
	r.mu.Unlock()
	if intercept != nil {
		return intercept(ctx, method)
	}
	return nil
}

// onCall sets what happens before each call.
func (r *testRuntime) onCall(f func(ctx context.Context, method string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// got returns the calls of a method that have arrived, forgetting none.
func (r *testRuntime) got(method string) []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.requests), func(c received) bool { return c.method != method })
}

// id makes a new ID of 64 hexadecimal digits.
func (r *testRuntime) id() string {
	r.next++
	return fmt.Sprintf("%032x%032x", len(r.name)*1000003, r.next)
}

// hexID is a fixed ID for objects that tests put in themselves.
func hexID(n int) string { return fmt.Sprintf("%064x", n) }

func (r *testRuntime) Version(_ context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: r.name, RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (r *testRuntime) RunPodSandbox(_ context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &runtimeapi.PodSandbox{
		Id: r.id(), Metadata: q.GetConfig().GetMetadata(), CreatedAt: time.Now().UnixNano(), Labels: q.GetConfig().GetLabels(),
		Annotations: q.GetConfig().GetAnnotations(), RuntimeHandler: q.GetRuntimeHandler(),
	}
	r.sandboxes = append(r.sandboxes, s)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.GetId()}, nil
}

func (r *testRuntime) StopPodSandbox(_ context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.GetId() == q.GetPodSandboxId() {
			s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *testRuntime) RemovePodSandbox(_ context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sandboxes = slices.DeleteFunc(r.sandboxes, func(s *runtimeapi.PodSandbox) bool { return s.GetId() == q.GetPodSandboxId() })
	r.containers = slices.DeleteFunc(r.containers, func(c *runtimeapi.Container) bool { return c.GetPodSandboxId() == q.GetPodSandboxId() })
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (r *testRuntime) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.GetId() == q.GetPodSandboxId() {
			response := &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
				Id: s.GetId(), Metadata: s.GetMetadata(), State: s.GetState(), CreatedAt: s.GetCreatedAt(), Labels: s.GetLabels(), Annotations: s.GetAnnotations(),
				Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{TargetId: s.GetId()}}},
			}}
			for _, c := range r.containers {
				if c.GetPodSandboxId() == s.GetId() {
					response.ContainersStatuses = append(response.ContainersStatuses, containerStatus(c))
				}
			}
			return response, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no sandbox %q", q.GetPodSandboxId())
}

func (r *testRuntime) ListPodSandbox(_ context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := q.GetFilter()
	response := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		if matchID(f.GetId(), s.GetId()) && matchLabels(f.GetLabelSelector(), s.GetLabels()) && (f.GetState() == nil || f.GetState().GetState() == s.GetState()) {
			response.Items = append(response.Items, proto.CloneOf(s))
		}
	}
	return response, nil
}

func (r *testRuntime) CreateContainer(_ context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &runtimeapi.Container{
		Id: r.id(), PodSandboxId: q.GetPodSandboxId(), Metadata: q.GetConfig().GetMetadata(), Image: q.GetConfig().GetImage(),
		ImageRef: q.GetConfig().GetImage().GetImage(), ImageId: q.GetConfig().GetImage().GetImage(), CreatedAt: time.Now().UnixNano(), Labels: q.GetConfig().GetLabels(),
	}
	r.containers = append(r.containers, c)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.GetId()}, nil
}

func (r *testRuntime) RestorePod(_ context.Context, q *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	response := &runtimeapi.RestorePodResponse{PodSandboxId: r.id()}
	for _, c := range q.GetContainerConfigs() {
		response.RestoredContainers = append(response.RestoredContainers, &runtimeapi.RestoredContainer{Name: c.GetMetadata().GetName(), ContainerId: r.id()})
	}
	return response, nil
}

func (r *testRuntime) setState(id string, state runtimeapi.ContainerState) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.GetId() == id {
			c.State = state
			return nil
		}
	}
	return status.Errorf(codes.NotFound, "no container %q", id)
}

func (r *testRuntime) StartContainer(_ context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, r.setState(q.GetContainerId(), runtimeapi.ContainerState_CONTAINER_RUNNING)
}

func (r *testRuntime) StopContainer(_ context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{}, r.setState(q.GetContainerId(), runtimeapi.ContainerState_CONTAINER_EXITED)
}

func (r *testRuntime) RemoveContainer(_ context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers = slices.DeleteFunc(r.containers, func(c *runtimeapi.Container) bool { return c.GetId() == q.GetContainerId() })
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *testRuntime) ListContainers(_ context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := q.GetFilter()
	response := &runtimeapi.ListContainersResponse{}
	for _, c := range r.containers {
		if matchID(f.GetId(), c.GetId()) && matchID(f.GetPodSandboxId(), c.GetPodSandboxId()) && matchLabels(f.GetLabelSelector(), c.GetLabels()) &&
			(f.GetState() == nil || f.GetState().GetState() == c.GetState()) {
			response.Containers = append(response.Containers, proto.CloneOf(c))
		}
	}
	return response, nil
}

func containerStatus(c *runtimeapi.Container) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: c.GetId(), Metadata: c.GetMetadata(), State: c.GetState(), CreatedAt: c.GetCreatedAt(), Image: c.GetImage(), ImageRef: c.GetImageRef(), ImageId: c.GetImageId(),
		Labels: c.GetLabels(), Mounts: []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: c.GetImageId()}}},
	}
}

func (r *testRuntime) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.GetId() == q.GetContainerId() {
			return &runtimeapi.ContainerStatusResponse{Status: containerStatus(c)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no container %q", q.GetContainerId())
}

func (r *testRuntime) ContainerStats(_ context.Context, q *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return &runtimeapi.ContainerStatsResponse{Stats: &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: q.GetContainerId()}}}, nil
}

func (r *testRuntime) ListContainerStats(_ context.Context, _ *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	response := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range r.containers {
		response.Stats = append(response.Stats, &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: c.GetId(), Labels: c.GetLabels()}})
	}
	return response, nil
}

func (r *testRuntime) ExecSync(_ context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{Stdout: []byte(q.GetContainerId()), ExitCode: 7}, nil
}

func (r *testRuntime) Exec(_ context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return &runtimeapi.ExecResponse{Url: "http://127.0.0.1:1/" + q.GetContainerId()}, nil
}

func (r *testRuntime) UpdateRuntimeConfig(_ context.Context, _ *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

func (r *testRuntime) Status(_ context.Context, _ *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return proto.CloneOf(r.status), nil
}

func (r *testRuntime) RuntimeConfig(_ context.Context, _ *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: r.driver}}, nil
}

func (r *testRuntime) ListMetricDescriptors(_ context.Context, _ *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{
		{Name: "shared", Help: "of " + r.name}, {Name: "only_" + r.name},
	}}, nil
}

func (r *testRuntime) ListPodSandboxMetrics(_ context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	response := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, s := range r.sandboxes {
		response.PodMetrics = append(response.PodMetrics, &runtimeapi.PodSandboxMetrics{
			PodSandboxId: s.GetId(), ContainerMetrics: []*runtimeapi.ContainerMetrics{{ContainerId: s.GetId()}},
		})
	}
	return response, nil
}

func (r *testRuntime) StreamContainers(q *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	if !r.streams {
		return status.Error(codes.Unimplemented, "no streams here")
	}
	list, err := r.ListContainers(stream.Context(), &runtimeapi.ListContainersRequest{Filter: q.GetFilter()})
	if err != nil {
		return err
	}
	for _, c := range list.GetContainers() {
		if err := stream.Send(&runtimeapi.StreamContainersResponse{Containers: []*runtimeapi.Container{c}}); err != nil {
			return err
		}
	}
	return nil
}

func (r *testRuntime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	if !r.streams {
		return status.Error(codes.Unimplemented, "no events here")
	}
	for {
		select {
		case e := <-r.events:
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (r *testRuntime) PullImage(_ context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	image := &runtimeapi.Image{Id: r.id(), RepoTags: []string{q.GetImage().GetImage()}, Size: 1}
	r.images = append(r.images, image)
	return &runtimeapi.PullImageResponse{ImageRef: image.GetId()}, nil
}

func (r *testRuntime) ListImages(_ context.Context, q *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	response := &runtimeapi.ListImagesResponse{}
	for _, i := range r.images {
		if name := q.GetFilter().GetImage().GetImage(); name == "" || name == i.GetId() || slices.Contains(i.GetRepoTags(), name) {
			response.Images = append(response.Images, proto.CloneOf(i))
		}
	}
	return response, nil
}

func (r *testRuntime) ImageStatus(_ context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.images {
		if i.GetId() == q.GetImage().GetImage() || slices.Contains(i.GetRepoTags(), q.GetImage().GetImage()) {
			return &runtimeapi.ImageStatusResponse{Image: proto.CloneOf(i)}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (r *testRuntime) RemoveImage(_ context.Context, q *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images = slices.DeleteFunc(r.images, func(i *runtimeapi.Image) bool {
		return i.GetId() == q.GetImage().GetImage() || slices.Contains(i.GetRepoTags(), q.GetImage().GetImage())
	})
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (r *testRuntime) ImageFsInfo(_ context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/" + r.name}}}}, nil
}
