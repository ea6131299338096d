package libvirttools

import (
	"fmt"
	"maps"
	"slices"

	"libvirt.org/go/libvirtxml"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// balloonPeriod is how often, in seconds, the guest reports its memory use.
	balloonPeriod = 10
)

// BuildXML returns the domain XML of a virtual machine. It is pure: equal input
// gives equal output and nothing is looked up. A field that is missing or cannot
// be expressed is an errdefs.ErrInvalidArgument that names it.
func BuildXML(d Domain) (string, error) {
	if err := d.validate(); err != nil {
		return "", fmt.Errorf("build domain of container %s: %w", d.ContainerID, err)
	}
	targets, err := assignTargets(d.Disks)
	if err != nil {
		return "", fmt.Errorf("build domain of container %s: %w", d.ContainerID, err)
	}
	signature, err := mark{d.Owner, d.SandboxID, d.ContainerID}.xml()
	if err != nil {
		return "", err
	}
	out := libvirtxml.Domain{
		Type:          domainType(d.Accel),
		Name:          d.Name,
		UUID:          d.UUID,
		Title:         d.Title,
		Metadata:      &libvirtxml.DomainMetadata{XML: signature},
		Memory:        &libvirtxml.DomainMemory{Value: uint((d.MemoryBytes + kib - 1) / kib), Unit: "KiB"}, //nolint:gosec // validated
		MemoryBacking: memoryBacking(d),
		VCPU:          &libvirtxml.DomainVCPU{Placement: "static", Value: uint(d.VCPUs)},
		OS:            bootEnvironment(d),
		SysInfo:       systemInformation(d),
		Features:      features(d),
		CPU:           cpu(d),
		Clock:         clock(d),
		// A guest that powers off or crashes ends its container; one that reboots
		// goes on in the same container.
		OnPoweroff:      "destroy",
		OnReboot:        "restart",
		OnCrash:         "destroy",
		Devices:         devices(d, targets),
		QEMUCommandline: environment(d.Env),
	}
	text, err := out.Marshal()
	if err != nil {
		return "", fmt.Errorf("build domain of container %s: %w", d.ContainerID, err)
	}
	return text, nil
}

// memoryBacking lets the servers of shared folders see the guest's memory, which
// costs nothing but is left out where nobody needs it. A memfd can have huge pages
// without a hugetlbfs being mounted.
func memoryBacking(d Domain) *libvirtxml.DomainMemoryBacking {
	served := slices.ContainsFunc(d.Shares, func(s Share) bool { return s.Folder == "" })
	if !served && d.HugePageBytes == 0 {
		return nil
	}
	out := &libvirtxml.DomainMemoryBacking{MemorySource: &libvirtxml.DomainMemorySource{Type: "memfd"}}
	if served {
		out.MemoryAccess = &libvirtxml.DomainMemoryAccess{Mode: "shared"}
	}
	if d.HugePageBytes > 0 {
		out.MemoryHugePages = &libvirtxml.DomainMemoryHugepages{Hugepages: []libvirtxml.DomainMemoryHugepage{
			{Size: uint(d.HugePageBytes / kib), Unit: "KiB"},
		}}
	}
	return out
}

func domainType(accel string) string {
	if accel == AccelKVM {
		return "kvm"
	}
	return "qemu"
}

func features(d Domain) *libvirtxml.DomainFeatureList {
	list := &libvirtxml.DomainFeatureList{
		ACPI: &libvirtxml.DomainFeature{},
		APIC: &libvirtxml.DomainFeatureAPIC{},
	}
	if d.Accel == AccelTCG {
		list.TCG = &libvirtxml.DomainFeatureTCG{TBCache: &libvirtxml.DomainFeatureTCGTBCache{
			Unit: "MiB", Size: translationCache(d.MemoryBytes),
		}}
	}
	return list
}

// translationCache is the size in MiB of TCG's cache of translated code, which is
// memory that the pod pays for. QEMU's own default is up to 1 GiB; no guest booted
// measurably slower with a quarter of its memory, and none needs more than 112: a
// booted Debian kernel with 1 GiB has filled 90 of them.
func translationCache(memory int64) uint {
	return uint(min(max(memory/4/mib, 32), 112))
}

func cpu(d Domain) *libvirtxml.DomainCPU {
	model := d.CPUModel
	switch {
	case model == "" && d.Accel == AccelKVM:
		model = CPUHost
	case model == "":
		model = defaultTCGCPU
	}
	// One socket, because some guests are licensed or built for few of them.
	c := &libvirtxml.DomainCPU{Topology: &libvirtxml.DomainCPUTopology{Sockets: 1, Cores: d.VCPUs, Threads: 1}}
	switch {
	case d.CPU != nil:
		d.CPU.describe(c)
	case isCPUMode(model):
		c.Mode = model
	default:
		c.Mode, c.Match, c.Check = "custom", "exact", "none"
		c.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: model}
	}
	for _, name := range d.DisableFeatures {
		// The author's word counts; libvirt takes no feature twice.
		if slices.ContainsFunc(c.Features, func(f libvirtxml.DomainCPUFeature) bool { return f.Name == name }) {
			continue
		}
		c.Features = append(c.Features, libvirtxml.DomainCPUFeature{Policy: "disable", Name: name})
	}
	return c
}

func isCPUMode(model string) bool {
	return model == CPUHost || model == CPUHostModel || model == CPUMaximum
}

func (c *CPU) describe(out *libvirtxml.DomainCPU) {
	out.Mode, out.Match, out.Check, out.Migratable, out.Vendor = c.Mode, c.Match, c.Check, c.Migratable, c.Vendor
	if c.Model != "" {
		out.Model = &libvirtxml.DomainCPUModel{Fallback: c.Fallback, Value: c.Model}
	}
	for _, feature := range c.Features {
		out.Features = append(out.Features, libvirtxml.DomainCPUFeature{Policy: feature.Policy, Name: feature.Name})
	}
}

// clock makes lost ticks be caught up, so that a guest on a busy node keeps time.
func clock(d Domain) *libvirtxml.DomainClock {
	offset := "utc"
	if d.LocalTime {
		offset = "localtime"
	}
	return &libvirtxml.DomainClock{Offset: offset, Timer: []libvirtxml.DomainTimer{
		{Name: "rtc", TickPolicy: "catchup"},
		{Name: "pit", TickPolicy: "delay"},
		{Name: "hpet", Present: "no"},
	}}
}

func environment(env map[string]string) *libvirtxml.DomainQEMUCommandline {
	if len(env) == 0 {
		return nil
	}
	out := &libvirtxml.DomainQEMUCommandline{}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out.Envs = append(out.Envs, libvirtxml.DomainQEMUCommandlineEnv{Name: name, Value: env[name]})
	}
	return out
}
