//go:build e2e

package cluster

import "testing"

// TestAnnotationsNameObjects: Virtlet's annotations name ConfigMaps and Secrets with SSH
// keys, user-data and files. What a pod mounts comes from there, all else from the API
// server, with the node's own identity and what it has been allowed to read.
func TestAnnotationsNameObjects(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.kubectl(t, "create", "role", "objects", "--verb=get", "--resource=configmaps,secrets")
	s.kubectl(t, "create", "rolebinding", "objects", "--role=objects", "--user=system:node:"+shared.Node().Name())
	s.kubectl(t, "apply", "-f", "testdata/sources.yaml")
	const script = `cut -d" " -f3 /root/.ssh/authorized_keys; cat /etc/one; echo; cat /etc/injected; echo; cat /etc/two`
	s.prints(t, "mounted", script+" 2>/dev/null || true", "of@configmap\nof a Secret\ninjected from a ConfigMap\n")
	s.prints(t, "named", script, "of@secret\nof a ConfigMap\ninjected from a Secret\nand of an annotation")
}
