//go:build integration

package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// leave runs the part of libvirt's container that moves virtlogd out of the container's
// control groups, after a preparation in a mount namespace of its own, and prints where
// it then is.
const leave = `set -euo pipefail
group=$1
eval "$2"
eval "$(sed -n '/^hierarchies() {/,/^}/p; /^leave() {/,/^}/p' "$3")"
hierarchies >&2
leave
cat /proc/self/cgroup`

// asVersion2 shows version 2 of control groups alone.
const asVersion2 = "umount --lazy --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"

// virtlogd outlives its container on machines with any version of control groups.
func TestLogDaemonLeavesItsContainer(t *testing.T) {
	for name, prepare := range map[string]string{"this machine's": ":", "version 2": asVersion2} {
		t.Run(name, func(t *testing.T) {
			group := fmt.Sprintf("/ambipod-leave-%d", os.Getpid())
			t.Cleanup(func() { removeGroup(t, group) })
			// Beside its own group it might make the one that it uses unless told; others
			// are those of tests beside this one.
			candidates := func() []string { return append(groups(t, group[1:]), groups(t, "ambipod")...) }
			before := candidates()
			out := mustRun(t, "unshare", "--mount", "bash", "-c", leave, "leave", group, prepare,
				filepath.Join(top, "images/node/rootfs/usr/libexec/ambipod/libvirt"))
			if !strings.Contains(out, "0::"+group+"\n") && !strings.Contains(out, ":memory:"+group+"\n") {
				t.Errorf("it is in\n%s", out)
			}
			if name != "version 2" && strings.Count(out, ":"+group+"\n") != strings.Count(out, "/sys/fs/cgroup") {
				t.Errorf("it is not in %s everywhere:\n%s", group, out)
			}
			made := slices.DeleteFunc(candidates(), func(dir string) bool { return slices.Contains(before, dir) })
			for _, dir := range made {
				if !strings.HasSuffix(dir, group) {
					t.Errorf("it made %s", dir)
				}
			}
		})
	}
}

// groups lists the control groups of this name at the root of each hierarchy and one
// level below.
func groups(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
		dirs, err := filepath.Glob(pattern + name)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, dirs...)
	}
	return found
}

func removeGroup(t *testing.T, group string) {
	for _, dir := range groups(t, strings.TrimPrefix(group, "/")) {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// The same files give the same image, with our programs and scripts in it.
func TestImageIsReproducible(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"bin", "packages/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"vmruntime", "vmwrapper", "vmguest", "vmctl"} {
		write(t, filepath.Join(dir, "bin", name), "#!"+name)
	}
	write(t, filepath.Join(dir, "packages/etc/debian_version"), "12")
	packages := filepath.Join(dir, "packages.tar.gz")
	mustRun(t, "tar", "-czf", packages, "-C", filepath.Join(dir, "packages"), ".")
	t.Setenv("BINARIES", filepath.Join(dir, "bin"))
	for _, out := range []string{"a.tar", "b.tar"} {
		mustRun(t, filepath.Join(top, "images/node/build.sh"), packages, filepath.Join(dir, out))
	}
	mustRun(t, "cmp", filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar"))

	image := filepath.Join(dir, "image")
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "tar", "-xf", filepath.Join(dir, "a.tar"), "-C", image)
	index, err := layout.ImageIndexFromPath(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

// make images runs what TestInstallation builds its image with.
func TestMakeImages(t *testing.T) {
	out := mustRun(t, "env", "--unset=MAKEFLAGS", "--unset=MAKELEVEL", "make", "--directory="+top, "--no-print-directory", "--dry-run", "images")
	const want = "hack/setup.sh images\nimages/node/build.sh _tools/images/packages.tar.gz _build/images/node.tar\n"
	if !strings.HasPrefix(out, want) {
		t.Errorf("make images would run\n%s, want first\n%s", out, want)
	}
}
