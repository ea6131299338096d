//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"testing"
)

// TestConfigurationReachesARunningVM: ConfigMaps, Secrets, the downward API, tokens
// and single files are in the guest, and what changes in the cluster changes there.
func TestConfigurationReachesARunningVM(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.apply(t, "live-config.yaml")
	const pod = "live"
	for script, want := range map[string]string{
		"cat /settings/colour":                                "green",
		"cat /etc/motd":                                       "one line\n",
		"cat /all/password":                                   "it's $HOME",
		"cat /all/of/colour":                                  "green",
		"cat /all/name":                                       pod,
		"cut -d. -f1 /all/token | cut -c1":                    "e\n", // {" in base64
		"grep tier /labels/labels":                            "tier=\"front\"\n",
		"touch /all/new 2>/dev/null || echo read-only":        "read-only\n",
		`echo "$NODE $PASSWORD $MEMORY"`:                      shared.Node().Name() + " it's $HOME 201326592\n",
		`. /etc/cloud/environment; echo "$NODE $PASSWORD"`:    shared.Node().Name() + " it's $HOME\n",
		"awk '$2 == \"/settings\" { print $3 }' /proc/mounts": "virtiofs\n",
	} {
		s.prints(t, pod, script, want)
	}
	s.kubectl(t, "patch", "configmap", "live-settings", "--patch", `{"data": {"colour": "red"}}`)
	s.kubectl(t, "patch", "secret", "live-credentials", "--patch", `{"stringData": {"password": "changed"}}`)
	s.kubectl(t, "label", "--overwrite", "pod", pod, "tier=back")
	s.prints(t, pod, "cat /settings/colour /all/of/colour /all/password", "redredchanged")
	s.prints(t, pod, "grep tier /labels/labels", "tier=\"back\"\n")
	s.kubectl(t, "delete", "pod", pod, "--grace-period=5")
}

// prints waits until a script in the guest prints this.
func (s space) prints(t *testing.T, pod, script, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s in the guest prints %q", script, want), func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "--namespace", s.name, "exec", pod, "--", "sh", "-c", script)
		if err == nil && out != want {
			err = fmt.Errorf("it prints %q", out)
		}
		return err
	})
}
