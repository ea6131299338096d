//go:build integration

package deploy

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// rendered is what of an overlay's manifests is looked at.
type rendered struct {
	daemonset appsv1.DaemonSet
	rules     []string // verbs and resources of all ClusterRoles
}

func render(t *testing.T, folder string) rendered {
	t.Helper()
	var r rendered
	manifests := mustRun(t, filepath.Join(top, "_tools/bin/kubectl"), "kustomize", filepath.Join(top, "deploy", folder))
	for manifest := range strings.SplitSeq(manifests, "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(manifest), &role); err != nil {
			t.Fatalf("%v in:\n%s", err, manifest)
		}
		switch role.Kind {
		case "ClusterRole":
			for _, rule := range role.Rules {
				r.rules = append(r.rules, strings.Join(rule.Verbs, ",")+" "+strings.Join(rule.Resources, ","))
			}
		case "DaemonSet":
			if err := yaml.UnmarshalStrict([]byte(manifest), &r.daemonset); err != nil {
				t.Fatalf("%v in:\n%s", err, manifest)
			}
		}
	}
	slices.Sort(r.rules)
	return r
}

// Nodes have no right to read objects of users unless somebody gives it to them, and
// each overlay changes the DaemonSet as it says.
func TestOverlays(t *testing.T) {
	for folder, want := range map[string]struct {
		rules    string
		argument string // of vmruntime, which base does not have
	}{
		"base":                {rules: "get,patch nodes"},
		"overlays/kvm":        {"get,patch nodes", "--accelerator=kvm"},
		"overlays/monitoring": {"get,patch nodes", "--status-address=$(NODE_IP):9468"},
		"overlays/objects":    {"get configmaps,secrets; get,patch nodes", "--kubeconfig=in-cluster"},
	} {
		t.Run(folder, func(t *testing.T) {
			r := render(t, folder)
			if got := strings.Join(r.rules, "; "); got != want.rules {
				t.Errorf("the daemons may %q, want %q", got, want.rules)
			}
			pod := r.daemonset.Spec.Template.Spec
			for _, argument := range []string{"--accelerator", "--status-address", "--kubeconfig"} {
				has := slices.ContainsFunc(pod.Containers[1].Args, func(a string) bool { return strings.HasPrefix(a, argument+"=") })
				if wanted := strings.HasPrefix(want.argument, argument); has != wanted {
					t.Errorf("vmruntime has %s: %t, want %t: %q", argument, has, wanted, pod.Containers[1].Args)
				}
			}
			if want.argument != "" && !slices.Contains(pod.Containers[1].Args, want.argument) {
				t.Errorf("vmruntime's arguments are %q, want %s among them", pod.Containers[1].Args, want.argument)
			}
			tokens := 0
			for _, mount := range pod.Containers[1].VolumeMounts {
				if strings.Contains(mount.MountPath, "serviceaccount") {
					tokens++
				}
			}
			if wanted := strings.Contains(want.rules, "secrets"); (tokens == 1) != wanted {
				t.Errorf("vmruntime has %d tokens, want one: %t", tokens, wanted)
			}
		})
	}
}
