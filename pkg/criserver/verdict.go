package criserver

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/libvirttools"
)

// Exit codes of VMs that did not power themselves off; a shell's for a process that
// was killed, and one that no process chooses for the rest.
const (
	exitKilled  = 137
	exitCrashed = 134
	exitUnknown = 255
)

// consoleTail is how much of a console is searched for what a dying kernel said.
const consoleTail = 16 << 10

// kernelPanic begins the line that Linux dies with.
const kernelPanic = "Kernel panic"

// verdict is how a VM ended, in kubelet's terms.
type verdict struct {
	at      time.Time
	code    int32
	reason  string // one word
	message string // one sentence
}

// judge finds out when and why a VM ended, from libvirt's memory and, where that is
// gone with a libvirtd that was restarted, from its log.
func (s *Server) judge(ctx context.Context, vm container, state libvirttools.State) verdict {
	end, err := libvirttools.ReadEnd(s.domainLog(vm))
	if err != nil {
		s.Logger.WarnContext(ctx, "no last words", "container", vm.ID, "err", err)
	}
	if state.Reason == libvirttools.ReasonUnknown || state.Reason == "" {
		state.Reason = end.Reason
	}
	v := verdict{at: after(failpoint.Now(), vm.StartedAt)}
	if end.At.After(vm.StartedAt) && end.At.Before(v.at) {
		v.at = end.At
	}
	switch {
	case vm.Panicked:
		v.code, v.reason, v.message = exitCrashed, "GuestPanicked", "the guest's kernel panicked"
		if words := panicWords(s.Layout.VM(vm.ID).ConsoleLog()); words != "" {
			v.message += ": " + words
		}
	case state.Reason == libvirttools.ReasonShutdown:
		v.reason = "Completed"
	case state.Reason == libvirttools.ReasonDestroyed:
		v.code, v.reason, v.message = exitKilled, "Error", "the VM was switched off"
	case state.Reason == libvirttools.ReasonCrashed:
		v.code, v.reason, v.message = exitCrashed, "Error", "QEMU died or was killed"
		if end.Words != "" {
			v.message += ", its last words: " + end.Words
		}
	default:
		v.code, v.reason, v.message = exitUnknown, "Error", fmt.Sprintf("the VM ended while nobody looked; libvirt gives the reason %q", state.Reason)
	}
	return v
}

// panicWords is the last line of a console that tells of a kernel panic. The guest
// writes there what it likes: the line is quoted and nothing depends on it.
func panicWords(console string) string {
	file, err := os.Open(console)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	// What virtlogd lets it grow to is the node's to say.
	data, err := io.ReadAll(io.NewSectionReader(file, max(0, info.Size()-consoleTail), consoleTail))
	if err != nil {
		return ""
	}
	text := string(data)
	at := strings.LastIndex(text, kernelPanic)
	if at < 0 {
		return ""
	}
	line, _, _ := strings.Cut(text[at:], "\n")
	return libvirttools.LastWords([]string{line})
}

// domainLog is where libvirtd logs what it does with a VM, and what QEMU says.
func (s *Server) domainLog(vm container) string {
	return filepath.Join(s.DomainLogs, domainName(vm)+".log")
}
