package criserver

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ambipod/ambipod/pkg/annotations"
	"github.com/ambipod/ambipod/pkg/failpoint"
	"github.com/ambipod/ambipod/pkg/layout"
	"github.com/ambipod/ambipod/pkg/libvirttools"
	"github.com/ambipod/ambipod/pkg/vmwrapper"
	"github.com/ambipod/ambipod/pkg/volumes"
)

// buildVM makes all that a VM consists of while it is switched off. Its caller
// undoes a half-done one with destroyVM.
func (s *Server) buildVM(ctx context.Context, box sandbox, vm container, plan vmPlan) error {
	if err := s.Images.Hold(vm.ImageID, vm.ID); err != nil {
		return err
	}
	failpoint.Hit("CreateContainer/image-held")
	files := s.Layout.VM(vm.ID)
	for _, dir := range []string{files.Dir, files.RunDir} {
		if err := layout.MakePassable(dir); err != nil {
			return err
		}
	}
	failpoint.Hit("CreateContainer/folders-made")
	var err error
	if plan.cloned, err = s.makeRoot(ctx, vm, plan); err != nil {
		return err
	}
	failpoint.Hit("CreateContainer/root-made")
	if err := s.makeDisks(ctx, vm, plan.volumes); err != nil {
		return err
	}
	failpoint.Hit("CreateContainer/disks-made")
	if err := s.writeConfigDisk(ctx, box, vm, plan); err != nil {
		return err
	}
	failpoint.Hit("CreateContainer/config-written")
	xml, err := libvirttools.BuildXML(s.domain(box, vm, plan))
	if err != nil {
		return err
	}
	if err := s.Domains.Define(ctx, xml); err != nil {
		return err
	}
	failpoint.Hit("CreateContainer/domain-defined")
	return nil
}

// makeRoot makes the disk that a VM boots from, or takes the pod's. It tells whether
// that is a clone of the image and no overlay.
func (s *Server) makeRoot(ctx context.Context, vm container, plan vmPlan) (cloned bool, err error) {
	if root := plan.volumes.root; root != nil {
		root.size, err = volumes.PreparePersistentRoot(ctx, volumes.PersistentRoot{
			Device:      root.node,
			Image:       plan.image.Path,
			ImageFormat: string(plan.image.Format),
			ImageID:     plan.image.ID,
			VirtualSize: plan.image.VirtualSize,
			Replace:     plan.settings.ReplaceRoot,
		})
		return false, err
	}
	root := volumes.Root{
		Path:        s.Layout.VM(vm.ID).RootClone(),
		Base:        plan.image.Path,
		BaseFormat:  string(plan.image.Format),
		VirtualSize: plan.image.VirtualSize,
		Size:        plan.settings.RootSize,
		UID:         s.QEMUUser.UID,
		GID:         s.QEMUUser.GID,
	}
	if cloned, err = volumes.CloneRoot(root); cloned || err != nil {
		return cloned, err
	}
	root.Path = s.Layout.VM(vm.ID).RootDisk()
	return false, volumes.CreateRoot(ctx, root)
}

// rootDisk describes it to libvirt.
func (s *Server) rootDisk(vm container, plan vmPlan) libvirttools.Disk {
	disk := libvirttools.Disk{Bus: plan.settings.DiskBus, Serial: "root"}
	switch root := plan.volumes.root; {
	case root != nil:
		disk.Path, disk.Device, disk.Format = root.node, true, libvirttools.FormatRaw
		disk.Offset, disk.Size = volumes.RootOffset, root.size
	case plan.cloned:
		disk.Path, disk.Format, disk.Ephemeral = s.Layout.VM(vm.ID).RootClone(), libvirttools.FormatRaw, true
	default:
		disk.Path, disk.Format, disk.Ephemeral = s.Layout.VM(vm.ID).RootDisk(), libvirttools.FormatQCOW2, true
		disk.Backing = &libvirttools.Disk{Path: plan.image.Path, Format: string(plan.image.Format)}
	}
	useAs(&disk, plan.volumes.rootUse)
	return disk
}

// destroyVM removes everything that buildVM makes and the record; each part may be
// absent. It fails while the VM runs.
func (s *Server) destroyVM(ctx context.Context, vm container) error {
	if err := s.Domains.Undefine(ctx, vm.DomainUUID); err != nil {
		return err
	}
	failpoint.Hit("RemoveContainer/undefined")
	files := s.Layout.VM(vm.ID)
	for _, dir := range []string{files.RunDir, files.Dir} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove files of VM %s: %w", vm.ID, err)
		}
	}
	failpoint.Hit("RemoveContainer/files-removed")
	if err := s.Images.Release(vm.ID); err != nil {
		return err
	}
	failpoint.Hit("RemoveContainer/image-released")
	// libvirt keeps its log of a domain for ever, and no domain comes twice.
	if err := os.Remove(s.domainLog(vm)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove libvirt's log of VM %s: %w", vm.ID, err)
	}
	failpoint.Hit("RemoveContainer/log-removed")
	return s.Records.Containers.Delete(vm.ID)
}

// domainName is what people see in virsh list.
func domainName(vm container) string {
	return "ambipod-" + vm.ID[:12] + "-" + vm.config.GetMetadata().GetName()
}

// Owner tells this node's domains from those of another on the same libvirtd.
func (s *Server) Owner() string { return s.Layout.State }

// domain describes a VM to libvirt.
func (s *Server) domain(box sandbox, vm container, plan vmPlan) libvirttools.Domain {
	files := s.Layout.VM(vm.ID)
	disks := []libvirttools.Disk{
		s.rootDisk(vm, plan),
		{Path: files.ConfigDisk(), Format: libvirttools.FormatRaw, CDROM: true, ReadOnly: true, Serial: "config", Bus: configBus(plan.settings)},
	}
	domain := libvirttools.Domain{
		UUID:        vm.DomainUUID,
		Name:        domainName(vm),
		Title:       podName(box.config),
		Owner:       s.Owner(),
		SandboxID:   box.ID,
		ContainerID: vm.ID,
		MemoryBytes: vm.MemoryBytes,
		VCPUs:       vm.VCPUs,
		Accel:       s.Accel,
		Emulator:    s.Wrapper,
		Env: map[string]string{
			vmwrapper.EnvSocket:   s.Layout.FDSocket(),
			vmwrapper.EnvKey:      vm.FDKey,
			vmwrapper.EnvEmulator: s.Emulator,
		},
		Disks:       append(disks, plan.volumes.libvirtDisks(files, plan.settings.DiskBus)...),
		Shares:      plan.volumes.libvirtShares(files),
		Console:     libvirttools.Console{Socket: files.ConsoleSocket(), Log: files.ConsoleLog()},
		AgentSocket: files.AgentSocket(),
		ExecSocket:  files.ExecSocket(),

		CPUModel:        plan.settings.CPUModel,
		CPU:             libvirtCPU(plan.settings.CPU),
		DisableFeatures: s.HideFeatures,
		Screen:          plan.settings.Screen,
	}
	describeHardware(&domain, files, box, plan)
	return domain
}

// libvirtCPU translates a pod's wish; libvirt judges its words.
func libvirtCPU(wish *annotations.CPU) *libvirttools.CPU {
	if wish == nil {
		return nil
	}
	cpu := &libvirttools.CPU{
		Mode: wish.Mode, Match: wish.Match, Check: wish.Check, Migratable: wish.Migratable,
		Model: wish.Model.Value, Fallback: wish.Model.Fallback, Vendor: wish.Vendor,
	}
	for _, feature := range wish.Features {
		cpu.Features = append(cpu.Features, libvirttools.CPUFeature(feature))
	}
	return cpu
}
