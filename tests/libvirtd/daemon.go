package libvirtd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/tests/process"
)

// searchPath is where the daemons and their helpers are found, whatever the
// caller's environment says.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// covers are the machine's folders that parts of Dir take the place of.
var covers = []struct{ part, target string }{
	{"run", "/run/libvirt"},
	{"lib", "/var/lib/libvirt"},
	{"log", "/var/log/libvirt"},
	{"etc", "/etc/libvirt"},
	{"cache", "/var/cache/libvirt"},
}

// enter runs inside the new mount namespace: arguments are the folder for
// devices, then pairs "source target" up to "--", then the daemon's command line.
// What the machine has in /run is not seen there, which has no /run/libvirt to cover if
// libvirt never ran.
const enter = `set -e
dev=$1
shift
mount -t tmpfs -o size=4k,mode=0755 none /run
while [ "$1" != -- ]; do
	mkdir -p "$2"
	mount --bind "$1" "$2"
	shift 2
done
shift
if [ -c /dev/kvm ]; then
	mount -t tmpfs -o size=64k,mode=0755 none "$dev"
	mknod -m 0666 "$dev/kvm" c 10 232
	mount --bind "$dev/kvm" /dev/kvm
fi
exec "$@"`

// stay starts a daemon that goes into the background, says so on descriptor 3, and
// stays: tini, its parent, then reaps whatever the daemon's own children leave. QEMU
// is one of these, and libvirt waits for its corpse to be gone; a machine's first
// process may take seconds to see to it.
const stay = `"$@" 3>&- && echo ready >&3 && exec sleep infinity 3>&-`

// files are the daemons' settings; see the package comment for the reasons.
var files = map[string]string{
	"etc/qemu.conf": `cgroup_controllers = [ ]
security_driver = "none"
`,
	"etc/libvirtd.conf": `auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
unix_sock_ro_perms = "0700"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
audit_level = 0
`,
	"etc/virtlogd.conf": `log_outputs = "2:file:/var/log/libvirt/virtlogd.log"
`,
}

// prepare checks the options and makes the folders and settings.
func prepare(o Options) (*Instance, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("folder of libvirtd %q is not absolute: %w", o.Dir, errdefs.ErrInvalidArgument)
	}
	uri, err := socketURI(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := requirements(o.Wrapper); err != nil {
		return nil, err
	}
	if old, err := Load(o.Dir); err == nil && (old.Libvirtd.Alive() || old.Virtlogd.Alive()) {
		return nil, fmt.Errorf("libvirtd of %s is running, stop it first: %w", o.Dir, errdefs.ErrAlreadyExists)
	}
	i := &Instance{Dir: o.Dir, URI: uri, Wrapper: o.Wrapper, Inner: o.Inner, Env: o.Env, Cache: o.CapabilityCache}
	if i.Cache == "" {
		i.Cache = filepath.Join(o.Dir, "cache")
	}
	return i, i.makeFiles()
}

func requirements(wrapper []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a private libvirtd needs root for its mount namespace, run as root: %w",
			errdefs.ErrFailedPrecondition)
	}
	programs := map[string]string{
		"libvirtd": "libvirt-daemon-system",
		"virtlogd": "libvirt-daemon-system",
		"unshare":  "util-linux",
		"tini":     "tini",
		"mount":    "mount",
	}
	if len(wrapper) > 0 {
		programs[wrapper[0]] = "the package that has it"
	}
	for program, pack := range programs {
		if lookPath(program) == "" {
			return fmt.Errorf("program %s is not installed, install %s: %w", program, pack,
				errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// lookPath finds a program on searchPath, which has the sbin folders that a
// caller's PATH may lack.
func lookPath(program string) string {
	if filepath.IsAbs(program) {
		return program
	}
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// makeFiles makes what the mount namespaces show. Everything is passable for
// QEMU's user, who reaches its own files below run and lib.
func (i *Instance) makeFiles() error {
	dirs := []string{i.Cache, filepath.Join(i.Dir, "dev")}
	for _, c := range covers {
		dirs = append(dirs, i.source(c.part))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // QEMU's user passes through here
			return fmt.Errorf("make folder of libvirtd: %w", err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the same, whatever the umask
			return fmt.Errorf("make folder of libvirtd: %w", err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(i.Dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write settings of libvirtd: %w", err)
		}
	}
	return nil
}

func (i *Instance) source(part string) string {
	if part == "cache" {
		return i.Cache
	}
	return filepath.Join(i.Dir, part)
}

// daemon starts one of the daemons, which goes into the background by itself
// when it is ready to answer.
func (i *Instance) daemon(ctx context.Context, name string) (process.Process, error) {
	pidFile := filepath.Join(i.Dir, "run", name+".pid")
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return process.Process{}, fmt.Errorf("start %s: %w", name, err)
	}
	argv := i.commandLine(name)
	if err := background(ctx, argv, i.Env); err != nil {
		return process.Process{}, fmt.Errorf("start %s in %s: %w", name, i.Dir, err)
	}
	return fromPIDFile(pidFile)
}

// background runs a command line that ends in stay until it says that it is ready,
// and lets it go on.
func background(ctx context.Context, argv, env []string) error {
	ready, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // only read
	words, err := os.CreateTemp("", "ambipod-libvirtd-*")
	if err != nil {
		return errors.Join(err, told.Close())
	}
	defer os.Remove(words.Name()) //nolint:errcheck // nothing depends on it
	defer words.Close()           //nolint:errcheck // only read from now on

	// The daemon outlives whoever starts it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + searchPath, "LANG=C", "HOME=/root"}, env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = words, words
	cmd.ExtraFiles = []*os.File{told}
	err = errors.Join(cmd.Start(), told.Close())
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	line, err := bufio.NewReader(ready).ReadString('\n')
	if line != "" {
		return cmd.Process.Release()
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), cmd.Process.Kill())
	}
	err = errors.Join(err, cmd.Wait())
	said, readErr := os.ReadFile(words.Name())
	return fmt.Errorf("%w: %s", errors.Join(err, readErr), strings.TrimSpace(string(said)))
}

func (i *Instance) commandLine(name string) []string {
	argv := append([]string(nil), i.Wrapper...)
	if len(argv) > 0 {
		argv[0] = lookPath(argv[0])
	}
	// The namespace sees what the machine mounts later, not the reverse.
	argv = append(argv, lookPath("unshare"), "--mount", "--propagation", "slave",
		"/bin/sh", "-c", enter, name, filepath.Join(i.Dir, "dev"))
	for _, c := range covers {
		argv = append(argv, i.source(c.part), c.target)
	}
	argv = append(argv, "--", lookPath("tini"), "-s", "--", "/bin/sh", "-c", stay, name)
	if name == "libvirtd" {
		argv = append(argv, i.Inner...)
	}
	return append(argv, lookPath(name), "-d", "-p", "/run/libvirt/"+name+".pid")
}

func fromPIDFile(path string) (process.Process, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return process.Process{}, fmt.Errorf("read PID: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return process.Process{}, fmt.Errorf("read PID from %s: %w", path, err)
	}
	return process.Find(pid)
}
