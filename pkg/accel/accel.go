package accel

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Mode is what the operator asks for.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto" // KVM where it works, else TCG
	ModeKVM  Mode = "kvm"  // KVM or an error
	ModeTCG  Mode = "tcg"  // TCG, without a look at KVM
)

// Accelerators, as libvirttools.Domain names them.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// DefaultDevice is where the kernel offers KVM.
const DefaultDevice = "/dev/kvm"

// Options say what is wanted and for whom.
type Options struct {
	Mode   Mode   // default ModeAuto
	Device string // default DefaultDevice
	// User is whom QEMU runs as. nil leaves out the check that it may open Device.
	User *User
}

// User is a user of the node; its supplementary groups are those of the node's
// user database.
type User struct {
	UID, GID uint32
}

// Choice is what to run VMs with.
type Choice struct {
	Accel  string // KVM or TCG
	Reason string // why, as part of a sentence: "KVM works: …", "…, so …"
	// DisableFeatures are CPU features, by libvirt's names, that QEMU must not pass
	// on to guests with this KVM, or else it aborts at start.
	DisableFeatures []string
}

// ParseMode reads a mode from a setting; the empty string is ModeAuto.
func ParseMode(text string) (Mode, error) {
	switch mode := Mode(text); mode {
	case "":
		return ModeAuto, nil
	case ModeAuto, ModeKVM, ModeTCG:
		return mode, nil
	default:
		return "", fmt.Errorf("accelerator %q is none of auto, kvm and tcg: %w", text, errdefs.ErrInvalidArgument)
	}
}

// Probe chooses an accelerator, within about two seconds. ModeKVM with a KVM that
// does not work is errdefs.ErrFailedPrecondition with the reason.
func Probe(ctx context.Context, o Options) (Choice, error) {
	mode, err := ParseMode(string(o.Mode))
	if err != nil {
		return Choice{}, err
	}
	if mode == ModeTCG {
		return Choice{Accel: TCG, Reason: "tcg is configured"}, nil
	}
	if o.Device == "" {
		o.Device = DefaultDevice
	}
	found, err := examine(ctx, o)
	switch {
	case err == nil:
		return Choice{Accel: KVM, Reason: "KVM works: " + found.summary, DisableFeatures: found.disable}, nil
	case ctx.Err() != nil:
		return Choice{}, fmt.Errorf("probe KVM: %w", ctx.Err())
	case mode == ModeKVM:
		return Choice{}, fmt.Errorf("accelerator kvm is configured, but %w; repair KVM or configure auto or tcg: %w",
			err, errdefs.ErrFailedPrecondition)
	default:
		return Choice{Accel: TCG, Reason: fmt.Sprintf("%v, so VMs run in software", err)}, nil
	}
}
