package criserver

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckSandboxConfig(t *testing.T) {
	pod := func(change func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
		config := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "1"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		}
		change(config)
		return config
	}
	namespaces := func(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
		return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	}
	for _, c := range []struct {
		name    string
		config  *runtimeapi.PodSandboxConfig
		handler string
		refusal string // words of the error, "" for none
	}{
		{"as kubelet sends it", pod(func(*runtimeapi.PodSandboxConfig) {}), "", ""},
		{"with the handler vm", pod(func(*runtimeapi.PodSandboxConfig) {}), "vm", ""},
		{"unknown handler", pod(func(*runtimeapi.PodSandboxConfig) {}), "gvisor", `"gvisor"`},
		{"no metadata", &runtimeapi.PodSandboxConfig{}, "", "metadata"},
		{"host network", pod(func(c *runtimeapi.PodSandboxConfig) { namespaces(c).Network = runtimeapi.NamespaceMode_NODE }), "", "hostNetwork"},
		{"host PIDs", pod(func(c *runtimeapi.PodSandboxConfig) { namespaces(c).Pid = runtimeapi.NamespaceMode_NODE }), "", "hostPID"},
		{"host IPC", pod(func(c *runtimeapi.PodSandboxConfig) { namespaces(c).Ipc = runtimeapi.NamespaceMode_NODE }), "", "hostIPC"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkSandboxConfig(c.config, c.handler)
			if c.refusal == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("got %v, want a refusal that says %s", err, c.refusal)
			}
		})
	}
}
