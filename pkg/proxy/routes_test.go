package proxy

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func mustRules(t testing.TB) *ruleset {
	t.Helper()
	rules, err := compileRules()
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// Every RPC of the CRI has a row, and its treatment fits how it answers.
func TestTableIsComplete(t *testing.T) {
	rules := mustRules(t)
	for _, service := range rules.services {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			r := rules.rules["/"+string(service.FullName())+"/"+string(method.Name())]
			if r == nil {
				t.Errorf("%s has no row", method.FullName())
				continue
			}
			if streams := r.do == toEveryStream || r.do == toSubscribers; streams != method.IsStreamingServer() {
				t.Errorf("%s: treatment %d, streams: %v", r.method, r.do, method.IsStreamingServer())
			}
			if method.IsStreamingClient() {
				t.Errorf("%s takes a stream of requests; no treatment can do that", r.method)
			}
		}
	}
}

// Merged lists have their items in field 1, also where a stream stands for a list.
func TestListsAgreeOnTheItemsField(t *testing.T) {
	for _, r := range mustRules(t).rules {
		isList := r.do == toEveryStream || r.do == toEvery && strings.HasPrefix(r.method, "List")
		if !isList {
			continue
		}
		items := r.answer.Fields().ByNumber(listItems)
		if items == nil || !items.IsList() || r.answer.Fields().Len() != 1 {
			t.Errorf("%s: field %d is not the one list of its answer", r.method, listItems)
			continue
		}
		if r.do != toEveryStream {
			continue
		}
		if r.listing == nil {
			t.Fatalf("%s has no list method", r.method)
		}
		if other := r.listing.answer.Fields().ByNumber(listItems); other.Message() != items.Message() {
			t.Errorf("%s lists %s, %s lists %s", r.method, items.Message().FullName(), r.listing.method, other.Message().FullName())
		}
	}
}

// Memory edits encoded items: their fields are where it expects them.
func TestFieldsThatMemoryEdits(t *testing.T) {
	rules := mustRules(t)
	for _, c := range []struct {
		message protoreflect.MessageDescriptor
		number  protoreflect.FieldNumber
		name    protoreflect.Name
	}{
		{(&runtimeapi.PodSandbox{}).ProtoReflect().Descriptor(), itemID, "id"},
		{(&runtimeapi.PodSandbox{}).ProtoReflect().Descriptor(), sandboxItemState, "state"},
		{(&runtimeapi.Container{}).ProtoReflect().Descriptor(), itemID, "id"},
		{(&runtimeapi.Container{}).ProtoReflect().Descriptor(), itemSandbox, "pod_sandbox_id"},
		{(&runtimeapi.Container{}).ProtoReflect().Descriptor(), containerState, "state"},
		{rules.runtime("RunPodSandbox").answer, 1, "pod_sandbox_id"},
		{rules.runtime("CreateContainer").answer, 1, "container_id"},
		{rules.runtime("StopPodSandbox").asks, 1, "pod_sandbox_id"},
		{rules.runtime("RemovePodSandbox").asks, 1, "pod_sandbox_id"},
		{rules.runtime("StartContainer").asks, 1, "container_id"},
		{rules.runtime("StopContainer").asks, 1, "container_id"},
		{rules.runtime("RemoveContainer").asks, 1, "container_id"},
	} {
		if f := c.message.Fields().ByNumber(c.number); f == nil || f.Name() != c.name {
			t.Errorf("field %d of %s is %v, want %s", c.number, c.message.FullName(), f, c.name)
		}
	}
	for method := range effects() {
		if rules.runtime(method) == nil {
			t.Errorf("effect of a method that does not exist: %s", method)
		}
	}
}

// No string field of the CRI that sounds like an ID is overlooked: it is either
// rewritten or known to be something else.
func TestEveryIDFieldIsRewritten(t *testing.T) {
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	kinds, err := collectKinds(file)
	if err != nil {
		t.Fatal(err)
	}
	noIDs := []protoreflect.FullName{
		"runtime.v1.PodSandboxMetadata.uid",        // kubelet's
		"runtime.v1.SecurityProfile.localhost_ref", // a file
	}
	for i := range file.Messages().Len() {
		fields := file.Messages().Get(i).Fields()
		for k := range fields.Len() {
			field := fields.Get(k)
			name := string(field.Name())
			sounds := name == "id" || strings.HasSuffix(name, "_id") || strings.HasSuffix(name, "_ids") || strings.HasSuffix(name, "id") || strings.HasSuffix(name, "_ref")
			if field.Kind() == protoreflect.StringKind && sounds && kinds[field.FullName()] == 0 && !slices.Contains(noIDs, field.FullName()) {
				t.Errorf("%s sounds like an ID and is not rewritten", field.FullName())
			}
		}
	}
}

func pod(annotations ...string) *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{Annotations: map[string]string{"unrelated": "x"}}
	for i := 0; i < len(annotations); i += 2 {
		config.Annotations[annotations[i]] = annotations[i+1]
	}
	return config
}

func image(name string, annotations ...string) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: name, Annotations: pod(annotations...).GetAnnotations()}
}

var (
	vmID        = "vm." + hexID(1)
	containerID = hexID(2)
)

// where is what a routing case expects: a runtime, "every", "nowhere", or the
// words that an InvalidArgument must contain.
type routingCase struct {
	name    string
	method  string
	request proto.Message
	where   string
	refusal []string
}

func routingCases() []routingCase {
	const def, vm, every, nowhere = "containerd", "vm", "every", "nowhere"
	return []routingCase{
		// Pods: by handler, then by annotation, else the default.
		{"plain pod", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod()}, def, nil},
		{"no config at all", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{}, def, nil},
		{"handler vm", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(), RuntimeHandler: "vm"}, vm, nil},
		{"handler of the default", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(), RuntimeHandler: "runc"}, def, nil},
		{"unknown handler is the default's to refuse", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "nonsense"}, def, nil},
		{"annotation", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "vm")}, vm, nil},
		{"Virtlet's annotation", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(oldAnnotation, "virtlet.cloud")}, vm, nil},
		{"Virtlet's key, our value", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(oldAnnotation, "vm.ambipod.io")}, vm, nil},
		{"both annotations agree", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "vm", oldAnnotation, "vm")}, vm, nil},
		{"annotation and handler agree", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "vm"), RuntimeHandler: "vm"}, vm, nil},
		{
			"annotation against handler", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "vm"), RuntimeHandler: "runc"},
			"",
			[]string{`annotation vm.ambipod.io/target-runtime "vm" (runtime vm)`, `runtime handler "runc" (runtime containerd)`},
		},
		{
			"unknown value", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "kvm")},
			"",
			[]string{vmAnnotation, `"kvm"`, "use vm or drop"},
		},
		{
			"unknown value of Virtlet's key", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(oldAnnotation, "frakti")},
			"",
			[]string{oldAnnotation, `"frakti"`, "virtlet.cloud, vm, vm.ambipod.io"},
		},
		{"empty value", "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod(vmAnnotation, "")}, "", []string{vmAnnotation, `""`}},
		{"restored pod", "RestorePod", &runtimeapi.RestorePodRequest{Config: pod(), RuntimeHandler: "vm"}, vm, nil},
		{"restored plain pod", "RestorePod", &runtimeapi.RestorePodRequest{Config: pod()}, def, nil},

		// Objects: by the prefix of their ID.
		{"stop VM pod", "StopPodSandbox", &runtimeapi.StopPodSandboxRequest{PodSandboxId: vmID}, vm, nil},
		{"stop pod", "StopPodSandbox", &runtimeapi.StopPodSandboxRequest{PodSandboxId: containerID}, def, nil},
		{"shortened ID", "ContainerStatus", &runtimeapi.ContainerStatusRequest{ContainerId: "vm.0000"}, vm, nil},
		{"empty ID", "StopContainer", &runtimeapi.StopContainerRequest{}, def, nil},
		{"prefix without its dot", "StopContainer", &runtimeapi.StopContainerRequest{ContainerId: "vm"}, def, nil},
		{"other prefix", "StopContainer", &runtimeapi.StopContainerRequest{ContainerId: "vmx." + hexID(1)}, def, nil},
		{"exec", "Exec", &runtimeapi.ExecRequest{ContainerId: vmID}, vm, nil},
		{"port forward", "PortForward", &runtimeapi.PortForwardRequest{PodSandboxId: vmID}, vm, nil},
		{"resize", "UpdatePodSandboxResources", &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: vmID}, vm, nil},
		{"checkpoint", "CheckpointPod", &runtimeapi.CheckpointPodRequest{PodSandboxId: vmID, ContainerIds: []string{vmID, vmID}}, vm, nil},
		{
			"checkpoint of a mixture", "CheckpointPod", &runtimeapi.CheckpointPodRequest{PodSandboxId: vmID, ContainerIds: []string{containerID}},
			"",
			[]string{`pod sandbox "` + vmID + `" (runtime vm)`, `container "` + containerID + `" (runtime containerd)`},
		},

		// Containers: sandbox and image must be of one kind.
		{"container in a pod", "CreateContainer", create(containerID, image("busybox")), def, nil},
		{"container by image ID", "CreateContainer", create(containerID, image("sha256:"+hexID(3))), def, nil},
		{"VM", "CreateContainer", create(vmID, image("vm.ambipod.io/debian")), vm, nil},
		{"VM by Virtlet's prefix", "CreateContainer", create(vmID, image("virtlet.cloud/cirros:1")), vm, nil},
		{"VM by image ID", "CreateContainer", create(vmID, image(vmID)), vm, nil},
		{"VM without image is vmruntime's to refuse", "CreateContainer", create(vmID, image("")), vm, nil},
		{
			"container image in a VM pod", "CreateContainer", create(vmID, image("docker.io/library/busybox:1")),
			"",
			[]string{`image "docker.io/library/busybox:1" (runtime containerd)`, `pod sandbox "` + vmID + `" (runtime vm)`, "vm.ambipod.io/", "virtlet.cloud/"},
		},
		{"container image ID in a VM pod", "CreateContainer", create(vmID, image("sha256:"+hexID(3))), "", []string{"runtime containerd", "runtime vm"}},
		{
			"VM image in a container pod", "CreateContainer", create(containerID, image("vm.ambipod.io/debian")),
			"",
			[]string{`image "vm.ambipod.io/debian" (runtime vm)`, `pod sandbox "` + containerID + `" (runtime containerd)`},
		},
		{"VM image ID in a container pod", "CreateContainer", create(containerID, image(vmID)), "", []string{"runtime vm", "runtime containerd"}},

		// Images: by prefix, then annotation, then handler.
		{"pull", "PullImage", pull(image("busybox"), nil), def, nil},
		{"pull of a VM image", "PullImage", pull(image("vm.ambipod.io/debian"), pod()), vm, nil},
		{"pull of a VM image with a port and tag", "PullImage", pull(image("vm.ambipod.io/127.0.0.1:80/debian:12"), nil), vm, nil},
		{"prefix is a whole segment", "PullImage", pull(image("vm.ambipod.iox/debian"), nil), def, nil},
		{"prefix is a whole segment, more of it", "PullImage", pull(image("vm.ambipod.io.example.com/debian"), nil), def, nil},
		{"prefix alone", "PullImage", pull(image("vm.ambipod.io"), nil), vm, nil},
		{"prefix in the middle", "PullImage", pull(image("example.com/vm.ambipod.io/debian"), nil), def, nil},
		{"a registry whose name begins like an ID", "PullImage", pull(image("vm.example.com/debian"), nil), def, nil},
		{"a tagged name that begins like an ID", "PullImage", pull(image("vm.tools:1"), nil), def, nil},
		{"pull by annotations in the spec", "PullImage", pull(image("debian", vmAnnotation, "vm"), nil), vm, nil},
		{"pull by annotations of the pod", "PullImage", pull(image("debian"), pod(vmAnnotation, "vm")), vm, nil},
		{"pull by handler", "PullImage", pull(&runtimeapi.ImageSpec{Image: "debian", RuntimeHandler: "vm"}, nil), vm, nil},
		{"pull with unknown value", "PullImage", pull(image("vm.ambipod.io/x", vmAnnotation, "qemu"), nil), "", []string{`"qemu"`}},
		{
			"VM image for a handler of the default", "PullImage", pull(&runtimeapi.ImageSpec{Image: "vm.ambipod.io/x", RuntimeHandler: "runc"}, nil),
			"",
			[]string{`image "vm.ambipod.io/x" (runtime vm)`, `runtime handler "runc" (runtime containerd)`},
		},
		{"status of a VM image", "ImageStatus", &runtimeapi.ImageStatusRequest{Image: image("virtlet.cloud/cirros")}, vm, nil},
		{"status by annotation", "ImageStatus", &runtimeapi.ImageStatusRequest{Image: image("cirros", oldAnnotation, "virtlet.cloud")}, vm, nil},
		{"status by ID", "ImageStatus", &runtimeapi.ImageStatusRequest{Image: image(vmID)}, vm, nil},
		{"status by ID with algorithm", "ImageStatus", &runtimeapi.ImageStatusRequest{Image: image("vm.sha256:" + hexID(1))}, vm, nil},
		{"status by digest", "ImageStatus", &runtimeapi.ImageStatusRequest{Image: image("sha256:" + hexID(1))}, def, nil},
		{"remove by ID", "RemoveImage", &runtimeapi.RemoveImageRequest{Image: image(vmID)}, vm, nil},
		{"remove by name", "RemoveImage", &runtimeapi.RemoveImageRequest{Image: image("vm.ambipod.io/x")}, vm, nil},
		{"remove plain", "RemoveImage", &runtimeapi.RemoveImageRequest{Image: image("busybox")}, def, nil},

		// Lists: all, unless the filter names an object.
		{"list", "ListPodSandbox", &runtimeapi.ListPodSandboxRequest{}, every, nil},
		{"list by label", "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"a": "b"}}}, every, nil},
		{"list one VM", "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: vmID}}, vm, nil},
		{"list one container", "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: containerID}}, def, nil},
		{"list a VM pod's", "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: vmID}}, vm, nil},
		{"contradicting filters match nothing", "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: containerID, PodSandboxId: vmID}}, nowhere, nil},
		{"stream one VM", "StreamPodSandboxes", &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: vmID}}, vm, nil},
		{"images", "ListImages", &runtimeapi.ListImagesRequest{}, every, nil},
		{"images with an empty filter", "ListImages", &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{}}}, every, nil},
		{"one VM image", "ListImages", &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: image("vm.ambipod.io/x")}}, vm, nil},
		{"node status", "Status", &runtimeapi.StatusRequest{}, every, nil},
		{"version", "Version", &runtimeapi.VersionRequest{}, def, nil},
		{"runtime config", "RuntimeConfig", &runtimeapi.RuntimeConfigRequest{}, def, nil},
	}
}

func create(sandbox string, image *runtimeapi.ImageSpec) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: &runtimeapi.ContainerConfig{Image: image}}
}

func pull(image *runtimeapi.ImageSpec, sandbox *runtimeapi.PodSandboxConfig) *runtimeapi.PullImageRequest {
	return &runtimeapi.PullImageRequest{Image: image, SandboxConfig: sandbox}
}

func TestRouting(t *testing.T) {
	rules := mustRules(t)
	v := paperView(DefaultConfig(), rules)
	for _, c := range routingCases() {
		t.Run(c.method+"/"+c.name, func(t *testing.T) {
			request, err := proto.Marshal(c.request)
			if err != nil {
				t.Fatal(err)
			}
			r := rules.named(c.method)
			d, err := v.decide(r, request)
			if c.refusal != nil {
				checkRefusal(t, err, c.method, c.refusal)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := whereTo(v, r, d); got != c.where {
				t.Errorf("goes to %s, want %s", got, c.where)
			}
		})
	}
}

func whereTo(v *view, r *rule, d decision) string {
	switch {
	case d.nowhere:
		return "nowhere"
	case d.backend != nil:
		return d.backend.name
	case r.do == toOwner:
		return v.fallback.name
	default:
		return "every"
	}
}

func checkRefusal(t *testing.T, err error, method string, words []string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != codes.InvalidArgument {
		t.Fatalf("code %v (%v), want InvalidArgument", s.Code(), err)
	}
	for _, word := range append(words, method) {
		if !strings.Contains(s.Message(), word) {
			t.Errorf("%q does not say %q", s.Message(), word)
		}
	}
	if strings.Contains(s.Message(), "\n") || strings.Count(s.Message(), ". ") > 0 {
		t.Errorf("%q is not one sentence", s.Message())
	}
}

// A request that is no protobuf is refused, whatever the method's signals.
func TestUnreadableRequestIsRefused(t *testing.T) {
	v := paperView(DefaultConfig(), mustRules(t))
	for _, r := range mustRules(t).rules {
		if !r.hasSignals() {
			continue
		}
		if _, err := v.decide(r, []byte{0x0a, 0xff}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", r.method, err)
		}
	}
}

// Where one image prefix lies within another, the longer one counts, in
// whatever order they are configured.
func TestLongerImagePrefixWins(t *testing.T) {
	c := DefaultConfig()
	c.Backends = append(c.Backends, BackendConfig{Name: "other", Socket: "/o", IDPrefix: "o.", ImagePrefixes: []string{"vm.ambipod.io/special"}})
	v := paperView(c, mustRules(t))
	for image, want := range map[string]string{
		"vm.ambipod.io/special/x": "other", "vm.ambipod.io/specialx": "vm", "vm.ambipod.io/x": "vm", "vm.ambipod.io/specia/l": "vm",
	} {
		if got := v.imageOwner([]byte(image)); got == nil || got.name != want {
			t.Errorf("%s: %v, want %s", image, got, want)
		}
	}
}
