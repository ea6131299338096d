package proxy

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A runtime that is slow all the time delays one list; the others get what it
// said last, never older than its own slowness.
func TestSlowRuntime(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.onCall(func(ctx context.Context, method string) error {
		if strings.HasPrefix(method, "List") {
			pause(ctx, patience+patience/2)
		}
		return ctx.Err()
	})
	s.wantWhole(t)
	var longest time.Duration
	for end := time.Now().Add(4 * patience); time.Now().Before(end); {
		started := time.Now()
		s.wantWhole(t)
		longest = max(longest, time.Since(started))
	}
	if longest > atOnce {
		t.Errorf("a list took %v", longest)
	}
	s.wantUnhurt(t)
	fill(s.vm, 1) // something that no call through the proxy has made
	eventually(t, "memory follows the slow runtime", func() bool {
		return len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()) == 3
	})
	s.vm.onCall(nil)
	s.wantRecoveryOf(t, container, 3)
}

// A runtime that dies again and again: lists stay whole, the others are unhurt,
// and the proxy does not hammer its socket.
func TestCrashLoopingRuntime(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.stop()
	listener := listenUnix(t, s.vm.socket)
	accepted := make(chan int)
	go func() {
		n := 0
		for {
			conn, err := listener.Accept()
			if err != nil {
				accepted <- n
				return
			}
			conn.Close()
			n++
		}
	}()
	began := time.Now()
	for time.Since(began) < 2*time.Second {
		s.wantWhole(t)
		s.wantUnhurt(t)
		_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
		wantCode(t, err, codes.Unavailable)
	}
	listener.Close()
	if n := <-accepted; n < 2 || n > 20 {
		t.Errorf("%d connections in two seconds, want a few", n)
	}
	s.vm.start(t)
	s.wantRecovery(t, container)
}

// Garbage of one runtime never reaches a merged answer, and is an error for a
// call that asks for one of its objects.
func TestRuntimeAnswersGarbage(t *testing.T) {
	half := must[[]byte](t)(proto.Marshal(&runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: hexID(1), Labels: map[string]string{"k": "v"}}}}))
	for name, answer := range map[string][]byte{
		"half a message":          half[:len(half)-1],
		"another type of message": must[[]byte](t)(proto.Marshal(&runtimeapi.VersionResponse{RuntimeName: "\xff\x01oops"[2:], Version: strings.Repeat("\x0a", 9)})),
		"text":                    []byte("HTTP/1.1 400 Bad Request"),
		"invalid UTF-8":           {0x0a, 0x03, 0x0a, 0x01, 0xff},
		"oversized":               bytes.Repeat([]byte{0x0a, 0x02, 0x0a, 0x00}, maxPart/4+1),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			s.populate(t)
			s.vm.stop()
			startRaw(t, s.vm.socket, func(stream grpc.ServerStream) error { return stream.SendMsg(frameOf(answer)) })
			vm := s.backend("vm")
			eventually(t, "the garbage runtime is connected", vm.isReady)
			s.wantWhole(t)
			s.wantUnhurt(t)
			node := must[*runtimeapi.StatusResponse](t)(s.Status(ctx(t), &runtimeapi.StatusRequest{Verbose: true}))
			if !node.GetStatus().GetConditions()[0].GetStatus() {
				t.Error("the node is not ready because of the garbage")
			}
		})
	}
}

// A server that is no gRPC server is as good as absent.
func TestRuntimeIsNoGRPCServer(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.vm.stop()
	listener := listenUnix(t, s.vm.socket)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			conn.Close()
		}
	}()
	s.wantWhole(t)
	s.wantUnhurt(t)
	_, err := s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container})
	wantCode(t, err, codes.Unavailable)
}

// A runtime that has never been there adds nothing, and its images and pods are
// refused at once: never an empty success, never executed later.
func TestAbsentRuntime(t *testing.T) {
	s := newStoppedSetup(t)
	s.def.start(t)
	s.startProxy(t)
	s.waitConnected(t, "containerd")
	started := time.Now()
	_, err := s.images.PullImage(ctx(t), pull(image("vm.ambipod.io/debian"), nil))
	wantCode(t, err, codes.Unavailable)
	_, err = s.images.ImageStatus(ctx(t), &runtimeapi.ImageStatusRequest{Image: image("vm.ambipod.io/debian")})
	wantCode(t, err, codes.Unavailable)
	_, err = s.images.RemoveImage(ctx(t), &runtimeapi.RemoveImageRequest{Image: image(vmID)})
	wantCode(t, err, codes.Unavailable)
	_, err = s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "vm"})
	wantCode(t, err, codes.Unavailable)
	if got := len(must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})).GetContainers()); got != 0 {
		t.Errorf("%d containers, want none", got)
	}
	if took := time.Since(started); took > atOnce {
		t.Errorf("that took %v", took)
	}
	s.vm.start(t)
	s.waitConnected(t, "vm")
	if calls := s.vm.got("RunPodSandbox"); len(calls) > 0 {
		t.Error("a pod was started after its caller had been told that it was not")
	}
	must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "vm"}))
}

// The default may come up after the proxy: a call waits for it as long as its
// caller does, and is not executed after that.
func TestDefaultComesUpLater(t *testing.T) {
	s := newStoppedSetup(t)
	s.startProxy(t)
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	started := time.Now()
	_, err := s.RunPodSandbox(short, &runtimeapi.RunPodSandboxRequest{Config: pod()})
	wantCode(t, err, codes.DeadlineExceeded)
	if took := time.Since(started); took > atOnce {
		t.Errorf("the call ended after %v, its deadline was 200 ms", took)
	}
	answers := make(chan error, 2)
	go func() {
		_, err := s.Version(ctx(t), &runtimeapi.VersionRequest{})
		answers <- err
	}()
	go func() {
		_, err := s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{})
		answers <- err
	}()
	pause(t.Context(), 100*time.Millisecond) // let them arrive; nothing depends on it
	s.def.start(t)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if calls := s.def.got("RunPodSandbox"); len(calls) > 0 {
		t.Error("a pod was started after its caller had given up")
	}
}

// When the default dies, its objects stay in the lists, VMs are managed as
// before, and Status fails, so that the node is not ready.
func TestDefaultDies(t *testing.T) {
	s := newSetup(t)
	_, container := s.populate(t)
	s.def.stop()
	s.wantWhole(t)
	must[*runtimeapi.ContainerStatusResponse](t)(s.ContainerStatus(ctx(t), &runtimeapi.ContainerStatusRequest{ContainerId: container}))
	must[*runtimeapi.RunPodSandboxResponse](t)(s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "vm"}))
	started := time.Now()
	_, err := s.Status(ctx(t), &runtimeapi.StatusRequest{})
	wantCode(t, err, codes.Unavailable)
	_, err = s.RunPodSandbox(ctx(t), &runtimeapi.RunPodSandboxRequest{Config: pod()})
	wantCode(t, err, codes.Unavailable)
	if took := time.Since(started); took > atOnce {
		t.Errorf("errors took %v", took)
	}
	s.def.start(t)
	back := time.Now()
	eventually(t, "Status is answered", func() bool {
		_, err := s.Status(ctx(t), &runtimeapi.StatusRequest{})
		return err == nil
	})
	if took := time.Since(back); took > recovery {
		t.Errorf("recovery took %v", took)
	}
}
