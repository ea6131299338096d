//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestOneServiceOfVMsAndContainers applies examples/service.yaml and reaches both
// kinds of pod at the Service's address and by its names, from a pod of either kind.
func TestOneServiceOfVMsAndContainers(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "service.yaml")
	s.rolledOut(t, "deployment/web-container")
	s.rolledOut(t, "deployment/web-vm")
	var service corev1.Service
	if err := shared.Get(deadline(t), "/api/v1/namespaces/"+s.name+"/services/web", &service); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{service.Spec.ClusterIP, "web", "web." + s.name + ".svc.cluster.local"} {
		for _, client := range []string{"deployment/web-container", "deployment/web-vm"} {
			t.Run(host+" from "+client, func(t *testing.T) { s.seesBoth(t, client, "http://"+host+"/") })
		}
	}

	s.kubectl(t, "scale", "deployment/web-container", "--replicas=0")
	s.kubectl(t, "wait", "--for=delete", "pod", "-l", "kind=container", "--timeout="+testTime.String())
	t.Run("without containers", func(t *testing.T) {
		eventually(t, "the Service leads to the VM alone", func(ctx context.Context) error {
			return s.endpoints(ctx, 1)
		})
	})
	s.kubectl(t, "scale", "deployment/web-vm", "--replicas=0")
	s.kubectl(t, "wait", "--for=delete", "pod", "-l", "kind=vm", "--timeout="+testTime.String())
}

// seesBoth asks for the page from inside a pod until each kind has answered.
func (s space) seesBoth(t *testing.T, client, url string) {
	seen := map[string]bool{}
	eventually(t, "both kinds answer", func(ctx context.Context) error {
		page, err := shared.Kubectl(ctx, "--namespace", s.name, "exec", client, "--", "wget", "-q", "-O", "-", url)
		if err != nil {
			return err
		}
		seen["VM"] = seen["VM"] || strings.Contains(page, "a virtual machine")
		seen["container"] = seen["container"] || strings.Contains(page, "container")
		if !seen["VM"] || !seen["container"] {
			return fmt.Errorf("answers came from %v", seen)
		}
		return nil
	})
}

// endpoints says whether the Service web leads to that many ready pods.
func (s space) endpoints(ctx context.Context, want int) error {
	out, err := shared.Kubectl(ctx, "--namespace", s.name, "get", "endpointslices", "-l", "kubernetes.io/service-name=web",
		"-o", "jsonpath={.items[*].endpoints[*].conditions.ready}")
	if err != nil {
		return err
	}
	if got := strings.Count(out, "true"); got != want {
		return fmt.Errorf("the Service has %d ready endpoints, want %d", got, want)
	}
	return nil
}
