package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// recordName is the file in a node's root that Load reads.
const recordName = "node.json"

// Folders below a node's root.
const (
	dirPrograms   = "bin"        // copies that QEMU's user may run
	dirEtc        = "etc"        // the daemons' settings
	dirRun        = "run"        // sockets
	dirLog        = "log"        // one file for each daemon
	dirDaemons    = "daemons"    // which process each daemon is
	dirContainerd = "containerd" // containerd's root and state
	dirLeases     = "leases"     // host-local's addresses in use
	dirVM         = "vm"         // vmruntime's state
	dirPlugins    = "plugins"    // CNI plugins of tests
	dirKubelet    = "kubelet"    // kubelet's root
	dirPKI        = "pki"        // kubelet's certificate
	dirManifests  = "manifests"  // static pods
	dirPods       = "pods"       // pod logs
	dirLibvirt    = "libvirt"    // tests/libvirtd
	dirRegistry   = "registry"   // blobs of the container images
	dirSite       = "site"       // what the image server shows
	dirCover      = "cover"      // what kubelet sees in place of the machine's folders
	dirMachine    = "machine"    // where Machine makes its root directory
)

// Programs from Debian packages that settings name by their path.
const (
	qemuPath   = "/usr/bin/qemu-system-x86_64"
	pluginsDir = "/usr/lib/cni"
	runcPath   = "/usr/sbin/runc"
)

func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.root}, elem...)...)
}

// tool is a pinned program that hack/build-tools.sh makes.
func (n *Node) tool(name string) string { return filepath.Join(n.cfg.Checkout, "_tools", "bin", name) }

// built is one of Ambipod's own programs.
func (n *Node) built(name string) string {
	if other := n.cfg.Programs[name]; other != "" {
		return other
	}
	return filepath.Join(n.cfg.Checkout, "_build", "bin", name)
}

// image is a file among the images that hack/setup.sh makes.
func (n *Node) image(name string) string {
	return filepath.Join(n.cfg.Checkout, "_tools", "images", name)
}

// programs lists what must be there before a node can start.
func (n *Node) programs() []string {
	need := []string{
		n.tool("kubelet"), n.tool("containerd"), n.tool("containerd-shim-runc-v2"),
		n.tool("crictl"), n.tool("crane"), n.image(guestFile),
		runcPath, filepath.Join(pluginsDir, "bridge"), "/usr/bin/busybox",
	}
	if n.wants(CRIProxy) {
		need = append(need, n.built("criproxy"))
	}
	if n.wants(VMRuntime) {
		need = append(need, n.built("vmruntime"), n.built("vmctl"), n.built("vmwrapper"), n.built("vmguest"), qemuPath)
	}
	return need
}

// Root is the folder with all the node's files.
func (n *Node) Root() string { return n.root }

// Checkout is the top folder of the source that the node runs.
func (n *Node) Checkout() string { return n.cfg.Checkout }

// ManifestDir is where kubelet looks for static pods.
func (n *Node) ManifestDir() string { return n.path(dirManifests) }

// VMStateDir is vmruntime's --state-dir.
func (n *Node) VMStateDir() string { return n.path(dirVM) }

// VMRunDir is vmruntime's --run-dir.
func (n *Node) VMRunDir() string { return filepath.Dir(n.VMRuntimeSocket()) }

// PluginDir is where CNI plugins of tests take effect, for vmruntime alone.
func (n *Node) PluginDir() string { return n.path(dirPlugins) }

// SiteDir is what the image server shows.
func (n *Node) SiteDir() string { return n.path(dirSite) }

// CNIConfig is the CNI configuration of both runtimes.
func (n *Node) CNIConfig() string { return n.path(dirEtc, "cni", "10-ambipod.conflist") }

// KubeletDir is kubelet's --root-dir.
func (n *Node) KubeletDir() string { return n.path(dirKubelet) }

// volumePluginDir is where kubelet looks for flexvolume drivers.
func (n *Node) volumePluginDir() string { return n.path(dirKubelet, "exec-plugins") }

// ImageTranslations is the file with the short names of disk images.
func (n *Node) ImageTranslations() string { return n.path(dirEtc, dirTranslations, "images.yaml") }

// PodLogDir is where kubelet has the pods' logs written.
func (n *Node) PodLogDir() string { return n.path(dirPods) }

// LogFile is where the daemon's own messages go.
func (n *Node) LogFile(daemon string) string {
	switch daemon {
	case Libvirtd, Virtlogd:
		return n.path(dirLibvirt, "log", daemon+".log")
	default:
		return n.path(dirLog, daemon+".log")
	}
}

// ContainerdSocket is where containerd serves the CRI.
func (n *Node) ContainerdSocket() string { return n.path(dirRun, "containerd.sock") }

// VMRuntimeSocket is where vmruntime serves the CRI.
func (n *Node) VMRuntimeSocket() string { return n.path(dirRun, "vm", "vmruntime.sock") }

// CRIProxySocket is where criproxy serves the CRI to kubelet.
func (n *Node) CRIProxySocket() string { return n.path(dirRun, "criproxy.sock") }

// CRISocket is what kubelet uses: criproxy's, or containerd's on a node without
// criproxy, which is what behaviour is compared with.
func (n *Node) CRISocket() string {
	if n.wants(CRIProxy) {
		return n.CRIProxySocket()
	}
	return n.ContainerdSocket()
}

// Bridge is the name, in the node's network namespace, of the bridge that pods are on.
func (n *Node) Bridge() string { return n.net.bridge() }

// Namespace is the path of the node's network namespace.
func (n *Node) Namespace() string { return namespacePath(n.id) }

// Crictl is a crictl that talks to this node unless told otherwise.
func (n *Node) Crictl() string { return n.path(dirPrograms, "crictl") }

// VMCtl is a vmctl that talks to this node unless told otherwise.
func (n *Node) VMCtl() string { return n.path(dirPrograms, "vmctl") }

// VMRuntimeStatus is the socket of vmruntime's status pages.
func (n *Node) VMRuntimeStatus() string { return n.path(dirRun, "vm", "vmruntime-status.sock") }

// CRIProxyStatus is the socket of criproxy's status pages.
func (n *Node) CRIProxyStatus() string { return n.path(dirRun, "criproxy-status.sock") }

// CRIProxyConfig is criproxy's configuration file.
func (n *Node) CRIProxyConfig() string { return n.path(dirEtc, "criproxy.yaml") }

// KubeletURL is kubelet's own API, reachable from the machine; its certificate
// is self-signed.
func (n *Node) KubeletURL() string { return "https://" + n.net.nodeIP().String() + ":10250" }

// Cgroup is the node's cgroup in every hierarchy: the parent of its pods'.
func (n *Node) Cgroup() string { return "/ambipod-" + n.id }

// makeFolders makes the root and what is in it. QEMU's user passes through the
// root on its way to its own files.
func (n *Node) makeFolders() error {
	type folder struct {
		name string
		mode os.FileMode
	}
	modes := []folder{
		{"", 0o711},
		{dirPrograms, 0o755},
		{dirRun, 0o711},
		{filepath.Join(dirRun, "criproxy"), 0o700},
		{filepath.Join(dirRun, "vm"), 0o711},
		{dirLibvirt, 0o711},
		{dirEtc, 0o700},
		{filepath.Join(dirEtc, "cni"), 0o700},
		{dirLog, 0o700},
		{dirDaemons, 0o700},
		{dirContainerd, 0o711},
		{dirLeases, 0o700},
		{dirPlugins, 0o700},
		{dirVM, 0o711},
		{dirKubelet, 0o711},
		{dirPKI, 0o700},
		{dirManifests, 0o700},
		{dirPods, 0o755},
		{dirRegistry, 0o700},
		{dirSite, 0o755},
		{dirCover, 0o700},
	}
	if n.cfg.OwnRoot {
		modes = append(modes, folder{dirMachine, 0o700})
	} else {
		modes = append(modes, folder{filepath.Join(dirCover, "lib"), 0o700}, folder{filepath.Join(dirCover, "log"), 0o700})
	}
	for _, m := range modes {
		dir := n.path(m.name)
		if err := os.MkdirAll(dir, m.mode); err != nil {
			return fmt.Errorf("make folder of node: %w", err)
		}
		if err := os.Chmod(dir, m.mode); err != nil {
			return fmt.Errorf("make folder of node: %w", err)
		}
	}
	return nil
}

// copyPrograms copies what QEMU's user runs or the image server shows: the
// checkout may be in a home folder that nobody else may enter.
func (n *Node) copyPrograms() error {
	err := copyFile(n.image(guestFile), n.path(dirSite, guestFile), 0o644)
	if n.wants(VMRuntime) {
		err = errors.Join(err, copyFile(n.built("vmwrapper"), n.path(dirPrograms, "vmwrapper"), 0o755))
	}
	return err
}

func copyFile(from, to string, mode os.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy to the node: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return fmt.Errorf("copy %s to the node: %w", from, err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy %s to the node: %w", from, err)
	}
	return out.Chmod(mode)
}
