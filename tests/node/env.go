package node

import (
	"context"
	"fmt"
	"strings"
)

// Env is what scripts need to know about the node, as shell assignments, one a
// line.
func (n *Node) Env() string {
	var text strings.Builder
	for _, v := range []struct{ name, value string }{
		{"CRIPROXY_SOCK", n.CRIProxySocket()},
		{"CONTAINERD_SOCK", n.ContainerdSocket()},
		{"VMRUNTIME_SOCK", n.VMRuntimeSocket()},
		{"LIBVIRT_URI", n.LibvirtURI()},
		{"KUBELET_URL", n.KubeletURL()},
		{"STATIC_PODS", n.ManifestDir()},
		{"POD_LOGS", n.PodLogDir()},
		{"DAEMON_LOGS", n.path(dirLog)},
		{"NETNS", namespacePath(n.id)},
		{"CRICTL", n.Crictl()},
		{"VMCTL", n.VMCtl()},
		{"CONTAINER_IMAGE", ContainerImage},
		{"VM_IMAGE", VMImage},
	} {
		fmt.Fprintf(&text, "%s=%s\n", v.name, quote(v.value))
	}
	return text.String()
}

// quote makes one word of a shell command from any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// RunCrictl runs crictl against the socket that kubelet uses and returns what it
// printed.
func (n *Node) RunCrictl(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, n.Crictl(), args...)
	return string(out), err
}
