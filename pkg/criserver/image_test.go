package criserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/diskusage"
	"github.com/ambipod/ambipod/pkg/imagestore"
	"github.com/ambipod/ambipod/pkg/imagestore/imagetest"
	"github.com/ambipod/ambipod/pkg/layout"
)

// imageService is vmruntime's image service with a real store, behind real gRPC.
type imageService struct {
	runtimeapi.ImageServiceClient

	store *imagestore.Store
	dirs  layout.Layout
}

func serveImages(t *testing.T) imageService {
	t.Helper()
	dir := t.TempDir()
	dirs := layout.Layout{State: dir, Run: dir}
	quiet := slog.New(slog.DiscardHandler)
	store, err := imagestore.Open(t.Context(), imagestore.Options{Dir: dirs.Images(), DefaultProtocol: "http", MinFree: 1, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dirs.VMs(), 0o700); err != nil {
		t.Fatal(err)
	}
	rpc := grpc.NewServer(Interceptors(quiet)...)
	runtimeapi.RegisterImageServiceServer(rpc, &Server{Options: Options{Images: store, Layout: dirs}})
	listener := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		rpc.Stop()
		<-served
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return imageService{runtimeapi.NewImageServiceClient(conn), store, dirs}
}

func spec(name string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: name} }

func (s imageService) pull(t *testing.T, name string) string {
	t.Helper()
	answer, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec(name)})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetImageRef()
}

func (s imageService) status(t *testing.T, name string) *runtimeapi.Image {
	t.Helper()
	answer, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec(name)})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetImage()
}

func (s imageService) list(t *testing.T, filter string) []*runtimeapi.Image {
	t.Helper()
	answer, err := s.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: spec(filter)}})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetImages()
}

func (s imageService) remove(t *testing.T, name string) {
	t.Helper()
	if _, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec(name)}); err != nil {
		t.Error(err)
	}
}

// site serves a disk as /a, /b and /c; its prefix is that of image names.
func site(t *testing.T, disk []byte) (prefix string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk) }))
	t.Cleanup(server.Close)
	return imagestore.Prefix + strings.Replace(server.URL, "://", "/", 1)
}

// TestImagesAnswerByEveryName pulls one content under two names.
func TestImagesAnswerByEveryName(t *testing.T) {
	disk := imagetest.QCOW2("a")
	digest := sha256.Sum256(disk)
	id := hex.EncodeToString(digest[:])
	host := site(t, disk)
	s := serveImages(t)
	every := []string{host + "/a", host + "/a:latest", host + "/b:v1", host + "/a@sha256:" + id, host + "/b@sha256:" + id, id, "sha256:" + id}
	for _, removed := range every {
		for _, name := range []string{host + "/a", host + "/b:v1"} {
			if ref := s.pull(t, name); ref != id {
				t.Errorf("PullImage(%s) = %q, want the ID %s", name, ref, id)
			}
		}
		for _, name := range every {
			image := s.status(t, name)
			if image.GetId() != id || image.GetSize() != uint64(len(disk)) ||
				!slices.Equal(image.GetRepoTags(), []string{host + "/a:latest", host + "/b:v1"}) ||
				!slices.Equal(image.GetRepoDigests(), []string{host + "/a@sha256:" + id, host + "/b@sha256:" + id}) {
				t.Errorf("ImageStatus(%s) = %v", name, image)
			}
			if images := s.list(t, name); len(images) != 1 || images[0].GetId() != id {
				t.Errorf("ListImages(%s) = %v", name, images)
			}
		}
		if images := s.list(t, ""); len(images) != 1 {
			t.Errorf("ListImages() = %v, want one image", images)
		}
		s.remove(t, removed)
		s.remove(t, removed) // may be repeated
		if images := s.list(t, ""); len(images) != 0 {
			t.Errorf("after RemoveImage(%s): %v", removed, images)
		}
	}
	for _, name := range append(every, host+"/never", "busybox", strings.Repeat("0", 64)) {
		if image := s.status(t, name); image != nil {
			t.Errorf("ImageStatus(%s) = %v, want no image", name, image)
		}
		if images := s.list(t, name); len(images) != 0 {
			t.Errorf("ListImages(%s) = %v, want none", name, images)
		}
	}
}

// TestRemovalWhileAVMRuns takes the image from the list at once, and its bytes from the
// disk with the last VM.
func TestRemovalWhileAVMRuns(t *testing.T) {
	host := site(t, imagetest.Raw("a", 4<<20))
	s := serveImages(t)
	empty := s.fsInfo(t).GetUsedBytes().GetValue()
	id := s.pull(t, host+"/a")
	for _, vm := range []string{"vm1", "vm2"} {
		if err := s.store.Hold(id, vm); err != nil {
			t.Fatal(err)
		}
	}
	s.remove(t, id)
	if images := s.list(t, ""); len(images) != 0 {
		t.Errorf("images after the removal: %v", images)
	}
	for _, vm := range []string{"vm1", "vm2"} {
		if grown := s.fsInfo(t).GetUsedBytes().GetValue() - empty; grown < 4<<20 {
			t.Errorf("before %s goes, the image takes %d bytes", vm, grown)
		}
		if err := s.store.Release(vm); err != nil {
			t.Fatal(err)
		}
	}
	if left := s.fsInfo(t).GetUsedBytes().GetValue() - empty; left > 1<<20 {
		t.Errorf("after the last VM %d bytes are left", left)
	}
}

func (s imageService) fsInfo(t *testing.T) *runtimeapi.FilesystemUsage {
	t.Helper()
	answer, err := s.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(answer.GetImageFilesystems()) != 1 {
		t.Fatalf("ImageFsInfo = %v, %v", answer, err)
	}
	return answer.GetImageFilesystems()[0]
}

func TestImageFsInfo(t *testing.T) {
	host := site(t, imagetest.Raw("a", 4<<20))
	s := serveImages(t)
	before := s.fsInfo(t)
	s.pull(t, host+"/a")
	after := s.fsInfo(t)
	if grown := after.GetUsedBytes().GetValue() - before.GetUsedBytes().GetValue(); grown < 4<<20 || grown > 5<<20 {
		t.Errorf("an image of 4 MiB takes %d bytes", grown)
	}
	if grown := after.GetInodesUsed().GetValue() - before.GetInodesUsed().GetValue(); grown != 2 {
		t.Errorf("an image takes %d inodes, want 2: the disk and its description", grown)
	}
	want, err := diskusage.Mountpoint(s.dirs.Images())
	if got := after.GetFsId().GetMountpoint(); err != nil || got != want {
		t.Errorf("mount point %q, want %q (%v)", got, want, err)
	}
}

// TestRefusedPullsHaveTheirCodes takes one of each class from the store's own table.
func TestRefusedPullsHaveTheirCodes(t *testing.T) {
	disk := imagetest.QCOW2("a")
	answers := map[string]http.HandlerFunc{
		"/absent":    http.NotFound,
		"/secret":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"/forbidden": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"/loop":      func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) },
		"/page":      func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"/huge":      func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "999999999999999") },
		"/disk":      func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(disk) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answers[r.URL.Path](w, r) }))
	t.Cleanup(server.Close)
	host := imagestore.Prefix + strings.Replace(server.URL, "://", "/", 1)
	s := serveImages(t)
	for name, want := range map[string]codes.Code{
		host + "/absent":    codes.NotFound,
		host + "/secret":    codes.Unauthenticated,
		host + "/forbidden": codes.PermissionDenied,
		host + "/loop":      codes.FailedPrecondition,
		host + "/page":      codes.InvalidArgument,
		host + "/huge":      codes.ResourceExhausted,
		host + "/disk@sha256:" + strings.Repeat("1", 64):        codes.DataLoss,
		imagestore.Prefix + "http/127.0.0.1:1/nobody-listens":   codes.Unavailable,
		"docker.io/library/busybox:latest":                      codes.InvalidArgument,
		imagestore.Prefix + "http/127.0.0.1:1/../../etc/passwd": codes.InvalidArgument,
		imagestore.Prefix + "file:///etc/passwd":                codes.InvalidArgument,
	} {
		_, err := s.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec(name)})
		got := status.Convert(err)
		if got.Code() != want || got.Message() == "" || strings.ContainsAny(got.Message(), "\n\r") {
			t.Errorf("PullImage(%s): %v %q, want %v and one sentence", name, got.Code(), got.Message(), want)
		}
	}
	if images := s.list(t, ""); len(images) != 0 {
		t.Errorf("images after the refusals: %v", images)
	}
}
