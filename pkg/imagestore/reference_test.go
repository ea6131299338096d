package imagestore

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/imagestore/translation"
)

func TestParseReference(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0123456789abcdef", 4)
	for _, tc := range []struct{ name, want, path string }{
		{"vm.ambipod.io/http/127.0.0.1/tiny.qcow2:latest", "vm.ambipod.io/http/127.0.0.1/tiny.qcow2:latest", "http/127.0.0.1/tiny.qcow2"},
		{"vm.ambipod.io/example.org/a.qcow2", "vm.ambipod.io/example.org/a.qcow2:latest", "example.org/a.qcow2"},
		{"virtlet.cloud/cirros", "virtlet.cloud/cirros:latest", "cirros"},
		{"virtlet.cloud/cirros:0.3.5", "virtlet.cloud/cirros:0.3.5", "cirros"},
		{"vm.ambipod.io/http/localhost:8080/A.img", "vm.ambipod.io/http/localhost:8080/A.img:latest", "http/localhost:8080/A.img"},
		{"vm.ambipod.io/http/localhost__8080/a.img:v1", "vm.ambipod.io/http/localhost__8080/a.img:v1", "http/localhost__8080/a.img"},
		{"vm.ambipod.io/a/b" + digest, "vm.ambipod.io/a/b" + digest, "a/b"},
		{"vm.ambipod.io/a/b:tag" + digest, "vm.ambipod.io/a/b" + digest, "a/b"},
	} {
		ref, err := ParseReference(tc.name)
		if err != nil || ref.String() != tc.want || ref.Path() != tc.path {
			t.Errorf("ParseReference(%q) = %q, path %q, %v; want %q, path %q", tc.name, ref, ref.Path(), err, tc.want, tc.path)
		}
		again, err := ParseReference(ref.String())
		if err != nil || again.String() != ref.String() {
			t.Errorf("ParseReference(%q) is not stable: %q, %v", ref, again, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, tc := range []struct{ name, why string }{
		{"", "does not begin with"},
		{"busybox", "does not begin with"},
		{"docker.io/library/busybox:latest", "does not begin with"},
		{"vm.ambipod.io/", "empty part"},
		{"vm.ambipod.io/:latest", "empty part"},
		{"vm.ambipod.io/a//b", "empty part"},
		{"vm.ambipod.io/../../etc/shadow", `a part ".."`},
		{"vm.ambipod.io/a/./b", `a part "."`},
		{"vm.ambipod.io/a/%2e%2e/b", `a part "%2e%2e"`},
		{"vm.ambipod.io/a/b?x=y", "a part"},
		{"vm.ambipod.io/a/b c", "a part"},
		{"vm.ambipod.io/a\\b", "a part"},
		{"vm.ambipod.io/a\x00b/c", "a part"},
		{"vm.ambipod.io/a/b:", "malformed tag"},
		{"vm.ambipod.io/a/b:-x", "malformed tag"},
		{"vm.ambipod.io/a/b@md5:abc", "digest"},
		{"vm.ambipod.io/a/b@sha256:abc", "digest"},
		{"vm.ambipod.io/a/b@", "digest"},
		{"vm.ambipod.io/" + strings.Repeat("a", maxNameLength), "longer than"},
	} {
		_, err := ParseReference(tc.name)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("ParseReference(%q) = %v; want an invalid argument that says %q", tc.name, err, tc.why)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("vm.ambipod.io/http/127.0.0.1:80/tiny.qcow2:latest")
	f.Add("virtlet.cloud/a/b@sha256:" + strings.Repeat("a", 64))
	f.Add("vm.ambipod.io/oci/registry.example/repo:1.0")
	f.Add("vm.ambipod.io/../a")
	s := &Store{opts: Options{DefaultProtocol: schemeHTTPS}, translation: translation.NewSource(nil)}
	f.Fuzz(func(t *testing.T, name string) {
		ref, err := ParseReference(name)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again.String() != ref.String() {
			t.Errorf("%q parses to %q, which parses to %q, %v", name, ref, again, err)
		}
		if strings.Contains("/"+ref.Path()+"/", "/../") || strings.ContainsAny(ref.Path(), "%?#@\\ \x00\n") {
			t.Errorf("%q has path %q", name, ref.Path())
		}
		if where, err := s.locate(ref); err == nil && len(where.key()) != idLength {
			t.Errorf("%q has key %q", name, where.key())
		}
	})
}
