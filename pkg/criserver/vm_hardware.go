package criserver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/network/fdproto"
	"github.com/ambipod/ambipod/pkg/tpm"
)

// checkHardware refuses what this node cannot give to a VM, before anything is made.
func (s *Server) checkHardware(ctx context.Context, plan vmPlan) error {
	if plan.settings.TPM {
		if err := s.TPMs.Check(); err != nil {
			return fmt.Errorf("annotation %stpm: %w", annotations.Domain, err)
		}
	}
	if err := checkHugePages(plan.size); err != nil {
		return err
	}
	named := plan.settings.CPUModel != "" && !slices.Contains(cpuModes, plan.settings.CPUModel)
	uefi := plan.settings.Firmware == annotations.FirmwareUEFI || plan.settings.Firmware == annotations.FirmwareSecure
	if err := s.checkCPUMode(plan.settings); err != nil || !named && !uefi {
		return err
	}
	able, err := s.Machines.Abilities(ctx, s.Wrapper, s.Accel, machineOf(plan.settings))
	switch {
	case err != nil:
		return err
	case named && !slices.Contains(able.CPUModels, plan.settings.CPUModel):
		return fmt.Errorf("annotation %scpu-model: value %q is not known to this node's libvirt, allowed are %s and %s: %w", annotations.Domain,
			plan.settings.CPUModel, strings.Join(cpuModes, ", "), strings.Join(able.CPUModels, ", "), errdefs.ErrInvalidArgument)
	case uefi && !able.UEFI:
		return fmt.Errorf("annotation %sfirmware: libvirt finds no UEFI firmware: install the Debian package ovmf on the node: %w", annotations.Domain, errdefs.ErrFailedPrecondition)
	case plan.settings.Firmware == annotations.FirmwareSecure && !able.SecureBoot:
		return fmt.Errorf("annotation %sfirmware: libvirt finds no UEFI firmware with secure boot: install the Debian package ovmf on the node, or choose %s: %w",
			annotations.Domain, annotations.FirmwareUEFI, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// abilities is what VMs can have on this node, for people: verbose Status shows it.
type abilities struct {
	libvirttools.Abilities

	TPM     bool   `json:"tpm"`
	Problem string `json:"problem,omitempty"` // why it is not known
}

func (s *Server) abilities(ctx context.Context) abilities {
	able, err := s.Machines.Abilities(ctx, s.Wrapper, s.Accel, libvirttools.MachineQ35)
	found := abilities{Abilities: able, TPM: s.TPMs.Check() == nil}
	if err != nil {
		found.Problem = err.Error()
	}
	return found
}

// cpuModes are values of cpu-model that name no processor.
var cpuModes = []string{libvirttools.CPUHostModel, libvirttools.CPUHost, libvirttools.CPUMaximum}

// checkCPUMode refuses the node's own processor where it is only emulated.
func (s *Server) checkCPUMode(settings annotations.Settings) error {
	if s.Accel == libvirttools.AccelKVM {
		return nil
	}
	mode, name := settings.CPUModel, "cpu-model"
	if settings.CPU != nil {
		mode, name = settings.CPU.Mode, "libvirt-cpu-setting"
	}
	if mode == libvirttools.CPUHost || mode == libvirttools.CPUHostModel {
		return fmt.Errorf("annotation %s: value %q needs KVM, which this node does not have, choose %s or the name of a processor: %w",
			annotations.Domain+name, mode, libvirttools.CPUMaximum, errdefs.ErrInvalidArgument)
	}
	return nil
}

// machineOf is the VM's machine type.
func machineOf(settings annotations.Settings) string {
	switch {
	case settings.Machine != "":
		return settings.Machine
	case settings.Firmware == annotations.FirmwareSecure:
		return libvirttools.MachineQ35
	}
	return libvirttools.MachinePC
}

// describeHardware fills in what a pod's annotations say about the machine itself.
func describeHardware(domain *libvirttools.Domain, files layout.VM, box sandbox, plan vmPlan) {
	settings := plan.settings
	domain.Machine = machineOf(settings)
	if settings.Firmware == annotations.FirmwareUEFI || settings.Firmware == annotations.FirmwareSecure {
		domain.Firmware = libvirttools.Firmware{
			UEFI: true, SecureBoot: settings.Firmware == annotations.FirmwareSecure, Variables: files.FirmwareVariables(),
		}
	}
	if settings.TPM {
		domain.TPMSocket = files.TPMSocket()
	}
	domain.Watchdog, domain.LocalTime, domain.HugePageBytes = settings.Watchdog, settings.LocalTime, plan.size.pageBytes
	if domain.Serial = settings.SerialNumber; domain.Serial == "" {
		domain.Serial = box.config.GetMetadata().GetUid()
	}
}

// configBus is where the cloud-init disk sits: a guest without virtio must see it, too,
// and virtio-blk has no CD-ROMs.
func configBus(settings annotations.Settings) string {
	if settings.DiskBus == libvirttools.BusSATA {
		return libvirttools.BusSATA
	}
	return libvirttools.BusSCSI
}

// startTPM starts a VM's TPM in its control group, if the pod wants one. It ends with
// QEMU; its caller ends the group if QEMU does not come to run.
func (s *Server) startTPM(ctx context.Context, box sandbox, vm container, settings annotations.Settings) error {
	if !settings.TPM {
		return nil
	}
	files := s.Layout.VM(vm.ID)
	return s.TPMs.Start(ctx, tpm.TPM{State: files.TPMState(), Socket: files.TPMSocket(), Group: s.cgroupOf(box, vm.ID)})
}

// nicModel is QEMU's name of the VM's network cards.
func nicModel(settings annotations.Settings) string {
	if settings.NICModel == annotations.NICVirtio {
		return fdproto.ModelVirtio
	}
	return settings.NICModel
}

// nicQueues is how many queues the VM's network cards are to have: more than CPUs would
// only cost memory.
func nicQueues(vm container, settings annotations.Settings) int {
	switch {
	case settings.NICModel != annotations.NICVirtio:
		return 1
	case settings.NICQueues > 0:
		return settings.NICQueues
	}
	return min(vm.VCPUs, annotations.MaxNICQueues)
}
