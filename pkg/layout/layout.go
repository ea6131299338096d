// Package layout names every file, folder and socket that Ambipod's daemons keep
// on a node, once. docs/internals.md lists who writes and who reads each.
//
// Two roots exist: State survives a reboot (by default /var/lib/ambipod), Run
// does not (by default /run/ambipod). Both are settings, so that several nodes
// fit on one machine. QEMU runs unprivileged and must reach its own disks and
// sockets, so the two roots and the folders on the way to them are 0711
// (passable, not listable); all else is 0700, and sockets are 0600.
package layout

import (
	"fmt"
	"os"
	"path/filepath"
)

// Default locations of a node's only instance.
const (
	DefaultState  = "/var/lib/ambipod"
	DefaultRun    = "/run/ambipod"
	DefaultConfig = "/etc/ambipod"
)

// socketDigits is how many digits of an ID tell the VMs of a node apart.
const socketDigits = 16

const (
	modePassable = 0o711
	modePrivate  = 0o700
)

// Layout derives every path of one node from its two roots.
type Layout struct {
	State string // survives a reboot
	Run   string // is empty after a reboot
}

// Database is the bolt file with the records of sandboxes and containers.
func (l Layout) Database() string { return filepath.Join(l.Private(), "metadata.db") }

// Private holds what nobody but vmruntime reads: database, CNI results.
func (l Layout) Private() string { return filepath.Join(l.State, "vmruntime") }

// Staging is for temporary files of vmruntime, which may hold secrets; it is emptied
// at each start.
func (l Layout) Staging() string { return filepath.Join(l.Private(), "tmp") }

// CNICache is where libcni keeps the results of ADD, needed by CHECK and DEL.
func (l Layout) CNICache() string { return filepath.Join(l.Private(), "cni") }

// Images is the image store's folder.
func (l Layout) Images() string { return filepath.Join(l.State, "images") }

// VMs holds one folder for each VM.
func (l Layout) VMs() string { return filepath.Join(l.State, "vms") }

// VM names the files of one VM; id is the CRI container ID. The folder of its
// sockets has the ID's beginning only, because a socket's path may have no more than
// 107 bytes (unix(7)).
func (l Layout) VM(id string) VM {
	return VM{Dir: filepath.Join(l.VMs(), id), RunDir: filepath.Join(l.Run, "vms", id[:min(len(id), socketDigits)])}
}

// NetNS is where the network namespaces of sandboxes are bound to files.
func (l Layout) NetNS() string { return filepath.Join(l.Run, "netns") }

// Socket is where vmruntime serves the CRI.
func (l Layout) Socket() string { return filepath.Join(l.Run, "vmruntime.sock") }

// ProxySocket is where criproxy serves the CRI to kubelet.
func (l Layout) ProxySocket() string { return filepath.Join(l.Run, "criproxy.sock") }

// StatusSocket is where vmruntime shows metrics and progress over HTTP.
func (l Layout) StatusSocket() string { return filepath.Join(l.Run, "vmruntime-status.sock") }

// KnownLists is where criproxy keeps what each runtime listed last.
func (l Layout) KnownLists() string { return filepath.Join(l.Run, "known") }

// FDSocket is where vmwrapper fetches tap descriptors; it belongs to QEMU's user.
func (l Layout) FDSocket() string { return filepath.Join(l.Run, "fd.sock") }

// VM names the files of one virtual machine.
type VM struct {
	Dir    string // persistent files
	RunDir string // sockets
}

// RootDisk is the qcow2 overlay over the image, written by QEMU.
func (v VM) RootDisk() string { return filepath.Join(v.Dir, "root.qcow2") }

// RootClone is the root disk in RootDisk's place where the file system lets it share its
// blocks with a raw image; raw, written by QEMU.
func (v VM) RootClone() string { return filepath.Join(v.Dir, "root.raw") }

// Disk is a disk that ends with the VM, of that name in the pod's annotation.
func (v VM) Disk(name string) string { return filepath.Join(v.Dir, "disk-"+name+".qcow2") }

// VolumeDisk is the disk of a volume, in the folder that kubelet has made for it.
func VolumeDisk(folder string) string { return filepath.Join(folder, "ambipod-disk.raw") }

// ConfigDisk is the cloud-init ISO image.
func (v VM) ConfigDisk() string { return filepath.Join(v.Dir, "config.iso") }

// FirmwareVariables is what the UEFI firmware of the VM remembers, written by QEMU.
func (v VM) FirmwareVariables() string { return filepath.Join(v.Dir, "firmware.vars") }

// TPMState is the folder in which the VM's TPM keeps what the guest trusts to it.
func (v VM) TPMState() string { return filepath.Join(v.Dir, "tpm") }

// TPMSocket is where the VM's TPM waits for QEMU.
func (v VM) TPMSocket() string { return filepath.Join(v.RunDir, "tpm.sock") }

// ConsoleLog is the raw serial output, written and rotated by virtlogd.
func (v VM) ConsoleLog() string { return filepath.Join(v.Dir, "console.log") }

// ConsoleState is how far the console has been copied to the pod's log.
func (v VM) ConsoleState() string { return filepath.Join(v.Dir, "console.state") }

// ConsoleSocket is the serial port's interactive end, a unix socket that QEMU binds.
func (v VM) ConsoleSocket() string { return filepath.Join(v.RunDir, "console.sock") }

// AgentSocket is the guest agent's channel, a unix socket that QEMU binds.
func (v VM) AgentSocket() string { return filepath.Join(v.RunDir, "agent.sock") }

// ExecSocket carries the streams of commands in the guest, a unix socket that QEMU
// binds.
func (v VM) ExecSocket() string { return filepath.Join(v.RunDir, "exec.sock") }

// Create makes the folders of a node with their modes; existing ones are
// tightened to the same modes.
func (l Layout) Create() error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{l.State, modePassable},
		{l.Run, modePassable},
		{l.Private(), modePrivate},
		{l.CNICache(), modePrivate},
		{l.Images(), modePassable},
		{l.VMs(), modePassable},
		{filepath.Join(l.Run, "vms"), modePassable},
		{l.NetNS(), modePrivate},
	} {
		if err := makeDir(dir.path, dir.mode); err != nil {
			return err
		}
	}
	return nil
}

// EmptyStaging removes what a killed vmruntime left in Staging. Only the process that
// holds the database may call it.
func (l Layout) EmptyStaging() error {
	if err := os.RemoveAll(l.Staging()); err != nil {
		return fmt.Errorf("empty %s: %w", l.Staging(), err)
	}
	return makeDir(l.Staging(), modePrivate)
}

// MakePassable makes a folder on the way to files that QEMU opens.
func MakePassable(path string) error { return makeDir(path, modePassable) }

func makeDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	// MkdirAll is subject to the umask and leaves an existing folder as it is.
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("set mode of %s: %w", path, err)
	}
	return nil
}
