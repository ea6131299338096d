//go:build integration

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// onAMachine runs its second argument, a script, with the root directory of a machine
// that is this one at first and where all changes go to memory: its processes are its
// own, and systemctl writes down what it is told. Afterwards it lists the files that
// were changed.
const onAMachine = `set -euo pipefail
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" "$1/root"
cp "$3" "$1/root/criproxy.deb"
cd "$1/root"
mount -t proc none proc
mount --bind /dev dev
mount -t tmpfs none run
mkdir -p run/systemd/system etc/systemd/system
cat >usr/bin/systemctl.new <<'STUB'
#!/bin/sh
echo "systemctl $*" >>/calls
[ "$1" != cat ] || cat "/etc/systemd/system/$2"
STUB
chmod 755 usr/bin/systemctl.new
mv usr/bin/systemctl.new usr/bin/systemctl
printf '[Service]\nEnvironmentFile=-/etc/default/kubelet\nExecStart=/usr/bin/kubelet $KUBELET_EXTRA_ARGS\n' >etc/systemd/system/kubelet.service
rm -rf etc/default/kubelet etc/ambipod
chroot . /bin/bash -c "$2"
cd ../upper
find . -type f ! -path './var/lib/dpkg/*' ! -path './var/log/*' ! -path './var/cache/*' | LC_ALL=C sort
`

// machine runs a script on a machine as a user of the package would, and returns what
// was printed.
func machine(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "criproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, "github.com/ambipod/ambipod/cmd/criproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("BINARY", binary)
	mustRun(t, top+"/deploy/debian/build.sh", "1.2.3", dir)
	root := filepath.Join(dir, "machine")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return mustRun(t, "unshare", "--mount", "--pid", "--fork", "bash", "-c", onAMachine, "machine", root, script,
		filepath.Join(dir, "criproxy_1.2.3_amd64.deb"))
}

// steps prints what each step says, with its exit status and calls of systemctl.
const steps = `
step() {
	local status=0
	: >/calls
	echo "# $*"
	"$@" 2>&1 | grep -v '^(Reading\|^Preparing\|^Unpacking\|^Selecting\|^Setting\|^Removing\|^Purging\|^Processing' || true
	status=${PIPESTATUS[0]}
	cat /calls
	echo "= $status"
}
export DEBIAN_FRONTEND=noninteractive
dpkg --install /criproxy.deb >/dev/null
step ambipod-node install
step ambipod-node install
step ambipod-node status
/bin/bash -c 'sleep 1000; :' guest=ambipod-0123-machine,debug-threads=on &
step dpkg --remove criproxy
step ambipod-node remove --force
step ambipod-node remove --force
step ambipod-node install
kill $!
wait $! || true
step ambipod-node status
step dpkg --purge criproxy
`

// The package and its script on a machine with kubelet: each step may be repeated,
// nothing is taken away under a VM, and nothing stays.
func TestPackageOnAMachine(t *testing.T) {
	const want = `# ambipod-node install
kubelet now uses criproxy at /run/ambipod/criproxy.sock.
systemctl cat kubelet.service
systemctl daemon-reload
systemctl enable --now criproxy.socket criproxy.service
systemctl try-restart kubelet.service
= 0
# ambipod-node install
kubelet already used criproxy; nothing was changed.
systemctl cat kubelet.service
systemctl daemon-reload
systemctl enable --now criproxy.socket criproxy.service
= 0
# ambipod-node status
yes  criproxy is installed
yes  kubelet is told to use criproxy
yes  kubelet starts after criproxy's socket
yes  criproxy runs
yes  kubelet runs
     VMs: 0
systemctl is-active criproxy.service
systemctl is-active kubelet.service
= 0
# dpkg --remove criproxy
ambipod-node: VM pods run on this node (ambipod-0123-machine); drain it first (kubectl drain), or use --force
dpkg: error processing package criproxy (--remove):
 installed criproxy package pre-removal script subprocess returned error exit status 1
Errors were encountered while processing:
 criproxy
= 1
# ambipod-node remove --force
kubelet uses its former runtime again.
systemctl daemon-reload
systemctl try-restart kubelet.service
systemctl disable --now criproxy.service criproxy.socket
= 0
# ambipod-node remove --force
kubelet does not use criproxy; nothing was changed.
= 0
# ambipod-node install
kubelet now uses criproxy at /run/ambipod/criproxy.sock.
systemctl cat kubelet.service
systemctl daemon-reload
systemctl enable --now criproxy.socket criproxy.service
systemctl try-restart kubelet.service
= 0
# ambipod-node status
yes  criproxy is installed
yes  kubelet is told to use criproxy
yes  kubelet starts after criproxy's socket
yes  criproxy runs
yes  kubelet runs
     VMs: 0
systemctl is-active criproxy.service
systemctl is-active kubelet.service
= 0
# dpkg --purge criproxy
kubelet uses its former runtime again.
systemctl daemon-reload
systemctl try-restart kubelet.service
systemctl disable --now criproxy.service criproxy.socket
systemctl daemon-reload
systemctl daemon-reload
= 0
./calls
./criproxy.deb
./etc/systemd/system/kubelet.service
./usr/bin/systemctl
`
	got := machine(t, steps)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("it went otherwise:\n%s", diff)
	}
}
