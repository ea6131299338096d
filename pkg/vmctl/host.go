package vmctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hostFiles tell about the machine.
var hostFiles = []string{
	"/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/cgroups", "/proc/self/mountinfo",
	"/proc/sys/kernel/random/boot_id", "/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested",
	"/sys/fs/cgroup/cgroup.controllers",
}

// collectHost adds facts about the machine.
func collectHost(a *archive, state string) {
	for _, file := range hostFiles {
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // machines differ
		}
		if err != nil {
			a.problem(file, err)
			continue
		}
		a.text(filepath.Join("host", file), string(content))
	}
	if content, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		first, _, _ := strings.Cut(string(content), "\n\n") // all are alike
		a.text("host/proc/cpuinfo", fmt.Sprintf("%d processors:\n%s\n", bytes.Count(content, []byte("processor\t")), first))
	}
	document, err := json.Marshal(hostFacts(state))
	a.document("host/facts.json", document, err)
}

// facts of a machine.
type facts struct {
	Kernel       string `json:"kernel"`
	Machine      string `json:"machine"`
	Hostname     string `json:"hostname"`
	User         int    `json:"user"`
	KVM          string `json:"kvm"` // mode and owner of the device, or why there is none
	StateFolder  string `json:"stateFolder"`
	FreeBytes    uint64 `json:"freeBytes"` // of the state folder's file system
	TotalBytes   uint64 `json:"totalBytes"`
	FreeInodes   uint64 `json:"freeInodes"`
	StateProblem string `json:"stateProblem,omitempty"`
}

func hostFacts(state string) facts {
	f := facts{User: os.Geteuid(), StateFolder: state}
	var names unix.Utsname
	if err := unix.Uname(&names); err == nil {
		f.Kernel = unix.ByteSliceToString(names.Release[:]) + " " + unix.ByteSliceToString(names.Version[:])
		f.Machine, f.Hostname = unix.ByteSliceToString(names.Machine[:]), unix.ByteSliceToString(names.Nodename[:])
	}
	var device unix.Stat_t
	if err := unix.Stat("/dev/kvm", &device); err != nil {
		f.KVM = "none: " + err.Error()
	} else {
		f.KVM = fmt.Sprintf("mode %#o, user %d, group %d", device.Mode&0o7777, device.Uid, device.Gid)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(state, &fs); err != nil {
		f.StateProblem = err.Error()
	} else {
		block := uint64(fs.Bsize) //nolint:gosec // block sizes are positive
		f.FreeBytes, f.TotalBytes, f.FreeInodes = fs.Bavail*block, fs.Blocks*block, fs.Ffree
	}
	return f
}

// daemon adds what the kernel knows of the process that serves a socket.
func (a *archive) daemon(name, socket string) {
	pid, err := peer(socket)
	if err != nil {
		a.problem("process of "+name, err)
		return
	}
	for _, file := range []string{"cmdline", "status", "limits", "cgroup"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			a.problem("process of "+name, err)
			continue
		}
		a.text(fmt.Sprintf("daemons/%s/%s", name, file), strings.ReplaceAll(string(content), "\x00", " "))
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	a.problem("process of "+name, err)
	a.text(fmt.Sprintf("daemons/%s/descriptors", name), fmt.Sprintln(len(open)))
}

// peer is the process that listens at a socket.
func peer(socket string) (int, error) {
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer func() { _ = connection.Close() }()
	raw, err := connection.SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		who, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || asked != nil {
		return 0, errors.Join(err, asked)
	}
	return int(who.Pid), nil
}
