package proxy

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExplain(t *testing.T) {
	for question, want := range map[string]string{
		`{"method": "RunPodSandbox", "request": {"config": {"annotations": {"vm.ambipod.io/target-runtime": "vm"}}, "runtime_handler": "vm"}}`: `RunPodSandbox goes to runtime vm at /run/ambipod/vmruntime.sock.
  because of annotation vm.ambipod.io/target-runtime "vm" (runtime vm)
  because of runtime handler "vm" (runtime vm)
IDs lose the prefix "vm." in the request and get it in the answer.
`,
		`{"method": "PullImage", "request": {"image": {"image": "busybox"}}}`: `PullImage goes to runtime containerd at /run/containerd/containerd.sock.
  because nothing in the request points to another runtime
`,
		`{"method": "ListContainers"}`: `ListContainers goes to every runtime and the answers are merged:
  containerd at /run/containerd/containerd.sock
  vm at /run/ambipod/vmruntime.sock
`,
		`{"method": "ListContainers", "request": {"filter": {"id": "a", "podSandboxId": "vm.b"}}}`: `ListContainers is answered with an empty list: its filter names objects of different runtimes.
  because of container "a" (runtime containerd)
  because of pod sandbox "vm.b" (runtime vm)
`,
		`{"method": "UpdateRuntimeConfig"}`: `UpdateRuntimeConfig goes to every runtime; the answer is that of containerd.
`,
		`{"method": "FreezePod"}`: `FreezePod goes to runtime containerd at /run/containerd/containerd.sock, byte for byte: the proxy does not know the method.
`,
	} {
		got, err := Explain(DefaultConfig(), []byte(question))
		if err != nil || got != want {
			t.Errorf("%s\ngot  %s, %v\nwant %s", question, got, err, want)
		}
	}
}

func TestExplainRefuses(t *testing.T) {
	_, err := Explain(DefaultConfig(), []byte(`{"method": "CreateContainer", "request": {"podSandboxId": "vm.1", "config": {"image": {"image": "busybox"}}}}`))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "refused") {
		t.Errorf("error %v", err)
	}
	for _, question := range []string{"", "[]", `{"method": "Version", "request": {"nonsense": 1}}`} {
		if _, err := Explain(DefaultConfig(), []byte(question)); err == nil {
			t.Errorf("%q is answered", question)
		}
	}
}
