package proxy

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A VM pod's whole life through the proxy: every ID that the caller sees has the
// prefix, no ID that the runtime sees has it.
func TestLifeOfAVM(t *testing.T) {
	s := newSetup(t)
	pulled := must[*runtimeapi.PullImageResponse](t)(s.images.PullImage(ctx(t), pull(image("vm.ambipod.io/debian"), pod())))
	run := must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: pod(), RuntimeHandler: "vm"}))
	sandbox := run.GetPodSandboxId()
	if want := "vm." + s.vm.sandboxes[0].GetId(); sandbox != want {
		t.Fatalf("sandbox %q, want %q", sandbox, want)
	}
	created := must[*runtimeapi.CreateContainerResponse](t)(s.CreateContainer(ctx(t), create(sandbox, image(pulled.GetImageRef()))))
	id := created.GetContainerId()
	must[*runtimeapi.StartContainerResponse](t)(s.StartContainer(ctx(t), &runtimeapi.StartContainerRequest{ContainerId: id}))

	arrived := s.vm.got("CreateContainer")[0].message.(*runtimeapi.CreateContainerRequest)
	if got := arrived.GetPodSandboxId(); got != s.vm.sandboxes[0].GetId() {
		t.Errorf("the runtime saw sandbox %q", got)
	}
	if got := arrived.GetConfig().GetImage().GetImage(); got != s.vm.images[0].GetId() {
		t.Errorf("the runtime saw image %q", got)
	}
	exec := must[*runtimeapi.ExecSyncResponse](t)(s.ExecSync(ctx(t), &runtimeapi.ExecSyncRequest{ContainerId: id}))
	if "vm."+string(exec.GetStdout()) != id || exec.GetExitCode() != 7 {
		t.Errorf("exec saw container %q, exit code %d", exec.GetStdout(), exec.GetExitCode())
	}
	// Streams go past the proxy: the URL is the runtime's own.
	attached := must[*runtimeapi.ExecResponse](t)(s.Exec(ctx(t), &runtimeapi.ExecRequest{ContainerId: id}))
	if want := "http://127.0.0.1:1/" + s.vm.containers[0].GetId(); attached.GetUrl() != want {
		t.Errorf("the URL is %q, the runtime said %q", attached.GetUrl(), want)
	}
	stats := must[*runtimeapi.ContainerStatsResponse](t)(s.ContainerStats(ctx(t), &runtimeapi.ContainerStatsRequest{ContainerId: id}))
	if got := stats.GetStats().GetAttributes().GetId(); got != id {
		t.Errorf("statistics of %q, want %q", got, id)
	}
	state := must[*runtimeapi.PodSandboxStatusResponse](t)(s.PodSandboxStatus(ctx(t), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox}))
	if got := state.GetStatus().GetId(); got != sandbox {
		t.Errorf("status of sandbox %q, want %q", got, sandbox)
	}
	if got := state.GetStatus().GetLinux().GetNamespaces().GetOptions().GetTargetId(); got != sandbox {
		t.Errorf("target ID %q, want %q", got, sandbox)
	}
	if got := state.GetContainersStatuses()[0].GetId(); got != id {
		t.Errorf("status in sandbox of %q, want %q", got, id)
	}
	for _, step := range []func() error{
		func() error {
			_, err := s.StopContainer(ctx(t), &runtimeapi.StopContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := s.RemoveContainer(ctx(t), &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := s.StopPodSandbox(ctx(t), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
			return err
		},
		func() error {
			_, err := s.RemovePodSandbox(ctx(t), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
			return err
		},
		func() error {
			_, err := s.images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: image(pulled.GetImageRef())})
			return err
		},
	} {
		if err := step(); err != nil {
			t.Error(err)
		}
	}
	if n := len(s.vm.sandboxes) + len(s.vm.containers) + len(s.vm.images); n != 0 {
		t.Errorf("%d objects are left", n)
	}
	if calls := s.def.got("CreateContainer"); len(calls) > 0 {
		t.Error("the default runtime was bothered")
	}
}

// One image has one ID wherever it appears, for every backend (CRI conformance).
func TestImageIDIsTheSameEverywhere(t *testing.T) {
	for name, handler := range map[string]string{"default": "", "vm": "vm"} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			reference := map[string]string{"": "busybox", "vm": "vm.ambipod.io/debian"}[handler]
			id := must[*runtimeapi.PullImageResponse](t)(s.images.PullImage(ctx(t), pull(image(reference), nil))).GetImageRef()
			sandbox := must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: handler})).GetPodSandboxId()
			container := must[*runtimeapi.CreateContainerResponse](t)(s.CreateContainer(ctx(t), create(sandbox, image(id)))).GetContainerId()
			listed := must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()[0]
			status := must[*runtimeapi.ContainerStatusResponse](t)(s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})).GetStatus()
			byName := must[*runtimeapi.ImageStatusResponse](t)(s.images.ImageStatus(ctx(t), &runtimeapi.ImageStatusRequest{Image: image(reference)})).GetImage()
			byID := must[*runtimeapi.ImageStatusResponse](t)(s.images.ImageStatus(ctx(t), &runtimeapi.ImageStatusRequest{Image: image(id)})).GetImage()
			all := must[*runtimeapi.ListImagesResponse](t)(s.images.ListImages(ctx(t), &runtimeapi.ListImagesRequest{})).GetImages()
			for where, got := range map[string]string{
				"ListContainers image_id": listed.GetImageId(), "ListContainers image_ref": listed.GetImageRef(), "ListContainers image": listed.GetImage().GetImage(),
				"ContainerStatus image_id": status.GetImageId(), "ContainerStatus image_ref": status.GetImageRef(), "ContainerStatus mount": status.GetMounts()[0].GetImage().GetImage(),
				"ImageStatus by name": byName.GetId(), "ImageStatus by ID": byID.GetId(), "ListImages": all[0].GetId(),
			} {
				if got != id {
					t.Errorf("%s is %q, PullImage said %q", where, got, id)
				}
			}
			if got := all[0].GetRepoTags(); !slices.Equal(got, []string{reference}) {
				t.Errorf("tags %q, want the name %q unchanged", got, reference)
			}
		})
	}
}

// Codes, messages, details, headers and trailers of a runtime reach the caller.
func TestErrorsAndMetadataPassUntouched(t *testing.T) {
	for name, id := range map[string]string{"default": containerID, "vm": vmID} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			r := map[string]*testRuntime{"default": s.def, "vm": s.vm}[name]
			want, err := status.New(codes.ResourceExhausted, "no more of that: ünïcode").WithDetails(&errdetails.RetryInfo{}, &errdetails.ErrorInfo{Reason: "why", Domain: "there"})
			if err != nil {
				t.Fatal(err)
			}
			r.onCall(func(ctx context.Context, _ string) error {
				return joined(grpc.SendHeader(ctx, metadata.Pairs("h", "1", "h-bin", "\x00\xff")), grpc.SetTrailer(ctx, metadata.Pairs("t", "2")), want.Err())
			})
			var header, trailer metadata.MD
			sent := metadata.AppendToOutgoingContext(ctx(t), "traceparent", "00-1-2-01", "grpc-trace-bin", "\x01\x02", "b3", "a", "b3", "b")
			_, err = s.ContainerStatus(sent, &runtimeapi.ContainerStatusRequest{ContainerId: id}, grpc.Header(&header), grpc.Trailer(&trailer))
			if got := status.Convert(err).Proto(); !proto.Equal(got, want.Proto()) {
				t.Errorf("status %v, want %v", got, want.Proto())
			}
			if got := header.Get("h"); !slices.Equal(got, []string{"1"}) {
				t.Errorf("header %q", got)
			}
			if got := header.Get("h-bin"); !slices.Equal(got, []string{"\x00\xff"}) {
				t.Errorf("binary header %q", got)
			}
			if got := trailer.Get("t"); !slices.Equal(got, []string{"2"}) {
				t.Errorf("trailer %q", got)
			}
			arrived := r.got("ContainerStatus")[0].metadata
			for key, values := range map[string][]string{"traceparent": {"00-1-2-01"}, "grpc-trace-bin": {"\x01\x02"}, "b3": {"a", "b"}} {
				if got := arrived.Get(key); !slices.Equal(got, values) {
					t.Errorf("metadata %s arrived as %q, want %q", key, got, values)
				}
			}
		})
	}
}

func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// The caller's deadline and its cancellation reach the runtime.
func TestDeadlineAndCancellationReachTheRuntime(t *testing.T) {
	for name, id := range map[string]string{"default": containerID, "vm": vmID} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			r := map[string]*testRuntime{"default": s.def, "vm": s.vm}[name]
			ended := make(chan error, 1)
			r.onCall(func(ctx context.Context, method string) error {
				if method == "StopContainer" {
					<-ctx.Done()
					ended <- ctx.Err()
				}
				return ctx.Err()
			})
			call, cancel := context.WithTimeout(t.Context(), time.Hour)
			done := make(chan error, 1)
			go func() {
				_, err := s.StopContainer(call, &runtimeapi.StopContainerRequest{ContainerId: id})
				done <- err
			}()
			eventually(t, "the call arrives", func() bool { return len(r.got("StopContainer")) == 1 })
			if left := time.Until(r.got("StopContainer")[0].deadline); left < 59*time.Minute || left > time.Hour {
				t.Errorf("the runtime sees a deadline in %v, want an hour", left)
			}
			cancel()
			wantCode(t, <-done, codes.Canceled)
			if err := <-ended; err == nil {
				t.Error("the runtime's call was not cancelled")
			}
		})
	}
}

// What a caller of a later CRI sends goes through: a method and a service that
// the table does not know, and fields that nobody knows, also in messages that
// are rewritten.
func TestUnknownMethodsAndFieldsPassByteForByte(t *testing.T) {
	s := newStoppedSetup(t)
	echo := startEcho(t, s.def.socket)
	s.vm.start(t)
	s.startProxy(t)
	s.waitConnected(t, "vm")
	unknown := protowire.AppendString(protowire.AppendTag(nil, 4711, protowire.BytesType), "from the future")
	for _, method := range []string{"/runtime.v1.RuntimeService/FreezePodSandbox", "/runtime.v2.RuntimeService/Version", "/made.up/Method"} {
		message := append([]byte{0x08, 0x96, 0x81, 0x00}, unknown...) // a varint longer than it need be
		var answer frame
		if err := s.conn.Invoke(ctx(t), method, frameOf(message), &answer, grpc.ForceCodecV2(codec{})); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(answer.bytes(), message) {
			t.Errorf("%s: %x came back, want %x", method, answer.bytes(), message)
		}
		if got := <-echo; got != method {
			t.Errorf("the runtime was called as %s, want %s", got, method)
		}
	}
}

// Fields that nobody knows stay in messages whose IDs are rewritten.
func TestUnknownFieldsSurviveRewriting(t *testing.T) {
	s := newSetup(t)
	request := &runtimeapi.RunPodSandboxRequest{Config: pod(), RuntimeHandler: "vm"}
	unknown := protowire.AppendString(protowire.AppendTag(nil, 4711, protowire.BytesType), "from the future")
	request.ProtoReflect().SetUnknown(unknown)
	request.Config.ProtoReflect().SetUnknown(unknown)
	must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), request))
	arrived := s.vm.got("RunPodSandbox")[0].message.(*runtimeapi.RunPodSandboxRequest)
	if !bytes.Equal(arrived.ProtoReflect().GetUnknown(), unknown) || !bytes.Equal(arrived.GetConfig().ProtoReflect().GetUnknown(), unknown) {
		t.Error("unknown fields of the request are lost")
	}
	s.vm.mu.Lock()
	s.vm.sandboxes[0].ProtoReflect().SetUnknown(unknown)
	s.vm.mu.Unlock()
	list := must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{}))
	if !bytes.Equal(list.GetItems()[0].ProtoReflect().GetUnknown(), unknown) {
		t.Error("unknown fields of a list item are lost")
	}
}

// A bidirectional stream of an unknown method is carried both ways at once.
func TestUnknownStreamFlowsBothWays(t *testing.T) {
	s := newStoppedSetup(t)
	startEcho(t, s.def.socket)
	s.startProxy(t)
	call, cancel := context.WithCancel(ctx(t))
	defer cancel()
	stream, err := s.conn.NewStream(call, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/made.up/Talk", grpc.ForceCodecV2(codec{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two", "three"} {
		if err := stream.SendMsg(frameOf([]byte(word))); err != nil {
			t.Fatal(err)
		}
		var answer frame
		if err := stream.RecvMsg(&answer); err != nil {
			t.Fatal(err)
		}
		if got := string(answer.bytes()); got != word {
			t.Errorf("%q came back, want %q", got, word)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&frame{}); status.Code(err) != codes.Aborted {
		t.Errorf("the stream ended with %v, want the runtime's own status", err)
	}
	if got := stream.Trailer().Get("echoed"); !slices.Equal(got, []string{"all"}) {
		t.Errorf("trailer %q", got)
	}
}

// A compressed call is answered.
func TestCompressedCall(t *testing.T) {
	s := newSetup(t)
	answer := must[*runtimeapi.VersionResponse](t)(s.Version(ctx(t), &runtimeapi.VersionRequest{}, grpc.UseCompressor(gzip.Name)))
	if answer.GetRuntimeName() != "containerd" {
		t.Errorf("runtime %q", answer.GetRuntimeName())
	}
}

// Messages of kubelet's full size pass in both directions.
func TestLargeMessages(t *testing.T) {
	s := newSetup(t)
	big := make([]byte, 15<<20)
	request := &runtimeapi.RunPodSandboxRequest{Config: pod("big", string(bytes.ReplaceAll(big, []byte{0}, []byte{'x'})))}
	must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), request))
	list := must[*runtimeapi.ListPodSandboxResponse](t)(s.ListPodSandbox(ctx(t), &runtimeapi.ListPodSandboxRequest{}))
	if got := len(list.GetItems()[0].GetAnnotations()["big"]); got != len(big) {
		t.Errorf("%d bytes came back, want %d", got, len(big))
	}
}
