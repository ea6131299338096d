package libvirttools

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"
)

const (
	minMemory        = 1 << 20
	maxMemory        = 1 << 46 // beyond what an x86-64 guest can address
	maxNameLength    = 200     // libvirt makes file names of it
	maxTitleLength   = 500
	maxSerialLength  = 36  // what virtio-scsi shows; virtio-blk shows 20
	maxTagLength     = 35  // virtio 1.2, 5.11.4
	maxSocketPath    = 107 // room in sockaddr_un without its NUL
	maxBackingLength = 8
)

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)
	idPattern     = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	envPattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	modelPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	serialPattern = regexp.MustCompile(`^[A-Za-z0-9_.+-]+$`)
)

// invalid builds the error for a wrong field of a domain.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

func (d Domain) validate() error {
	for _, check := range []func() error{d.validateIdentity, d.validateSize, d.validateCPU, d.validateEmulator, d.validatePaths, d.validateShares, d.validateHardware} {
		if err := check(); err != nil {
			return err
		}
	}
	return validateDisks(d.Disks)
}

func (d Domain) validateIdentity() error {
	switch {
	case uuid.Validate(d.UUID) != nil || len(d.UUID) != 36:
		return invalid("UUID %q is not of the form 8-4-4-4-12", d.UUID)
	case !namePattern.MatchString(d.Name) || len(d.Name) > maxNameLength:
		return invalid("domain name %q must be 1 to %d letters, digits, dots, pluses, dashes and underscores",
			d.Name, maxNameLength)
	case !idPattern.MatchString(d.SandboxID):
		return invalid("sandbox ID %q is empty or has characters other than letters, digits, dots, dashes and underscores", d.SandboxID)
	case !idPattern.MatchString(d.ContainerID):
		return invalid("container ID %q is empty or has characters other than letters, digits, dots, dashes and underscores", d.ContainerID)
	case !plain(d.Owner):
		return invalid("owner %q has characters that XML cannot carry", d.Owner)
	case !plain(d.Title) || len(d.Title) > maxTitleLength:
		return invalid("title %q is longer than %d bytes or has characters that XML cannot carry", d.Title, maxTitleLength)
	}
	return nil
}

func (d Domain) validateSize() error {
	switch {
	case d.MemoryBytes < minMemory:
		return invalid("a VM with %d bytes of memory cannot be built, give it at least %d", d.MemoryBytes, minMemory)
	case d.MemoryBytes > maxMemory:
		return invalid("a VM with %d bytes of memory cannot be built, the limit is %d", d.MemoryBytes, int64(maxMemory))
	case d.VCPUs < 1 || d.VCPUs > maxVCPUs:
		return invalid("a VM can have 1 to %d CPUs, not %d", maxVCPUs, d.VCPUs)
	case d.Accel != AccelKVM && d.Accel != AccelTCG:
		return invalid("accelerator %q is neither %q nor %q", d.Accel, AccelKVM, AccelTCG)
	case d.CPUModel != "" && !modelPattern.MatchString(d.CPUModel):
		return invalid("CPU model %q is not a name from libvirt's CPU map", d.CPUModel)
	case slices.ContainsFunc(d.DisableFeatures, func(name string) bool { return !modelPattern.MatchString(name) }):
		return invalid("one of the CPU features %q is not a name from libvirt's CPU map", d.DisableFeatures)
	case d.Accel == AccelTCG && (d.CPUModel == CPUHost || d.CPUModel == CPUHostModel):
		return invalid("CPU model %q needs KVM; without it use %q or a named model", d.CPUModel, CPUMaximum)
	}
	return nil
}

func (d Domain) validateCPU() error {
	if d.CPU == nil {
		return nil
	}
	if d.CPUModel != "" {
		return invalid("a VM has a CPU model %q and another description of its CPU, choose one", d.CPUModel)
	}
	if d.Accel == AccelTCG && (d.CPU.Mode == CPUHost || d.CPU.Mode == CPUHostModel) {
		return invalid("CPU mode %q needs KVM; without it use %q or a named model", d.CPU.Mode, CPUMaximum)
	}
	words := []string{d.CPU.Mode, d.CPU.Match, d.CPU.Check, d.CPU.Migratable, d.CPU.Model, d.CPU.Fallback, d.CPU.Vendor}
	for _, feature := range d.CPU.Features {
		if feature.Name == "" {
			return invalid("a feature of the CPU has no name")
		}
		words = append(words, feature.Policy, feature.Name)
	}
	for _, word := range words {
		if word != "" && !modelPattern.MatchString(word) {
			return invalid("%q in the description of the CPU is no word of libvirt's", word)
		}
	}
	return nil
}

func (d Domain) validateEmulator() error {
	if err := validatePath("emulator", d.Emulator); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(d.Env)) {
		if !envPattern.MatchString(name) {
			return invalid("%q is no name for an environment variable", name)
		}
		if !plain(d.Env[name]) {
			return invalid("the value of environment variable %s has characters that XML cannot carry", name)
		}
	}
	return nil
}

func (d Domain) validatePaths() error {
	if err := validatePath("console log", d.Console.Log); err != nil {
		return err
	}
	if err := validateSocket("console socket", d.Console.Socket); err != nil {
		return err
	}
	for _, optional := range []struct{ what, path string }{{"agent socket", d.AgentSocket}, {"exec socket", d.ExecSocket}} {
		if optional.path == "" {
			continue
		}
		if err := validateSocket(optional.what, optional.path); err != nil {
			return err
		}
	}
	return nil
}

func (d Domain) validateShares() error {
	if len(d.Shares) > maxShares {
		return invalid("a VM can have %d shared folders, not %d", maxShares, len(d.Shares))
	}
	tags := make(map[string]bool)
	for _, share := range d.Shares {
		switch {
		case !serialPattern.MatchString(share.Tag) || len(share.Tag) > maxTagLength:
			return invalid("tag %q of a shared folder must be 1 to %d letters, digits, dots, pluses, dashes and underscores", share.Tag, maxTagLength)
		case tags[share.Tag]:
			return invalid("two shared folders have the tag %s", share.Tag)
		}
		tags[share.Tag] = true
		if err := share.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (s Share) validate() error {
	switch {
	case s.Folder == "" && s.ReadOnly:
		return invalid("what serves the shared folder %s has to see to it that it is read-only", s.Tag)
	case s.Folder == "":
		return validateSocket("shared folder", s.Socket)
	case s.Socket != "":
		return invalid("shared folder %s has a server and a path, choose one", s.Tag)
	}
	return validatePath("shared folder", s.Folder)
}

func validatePath(what, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || !plain(path) {
		return invalid("path of %s %q must be absolute, clean and without control characters", what, path)
	}
	return nil
}

func validateSocket(what, path string) error {
	if len(path) > maxSocketPath {
		return invalid("path of %s %q is longer than the %d bytes of a unix socket", what, path, maxSocketPath)
	}
	return validatePath(what, path)
}

func validateDisks(disks []Disk) error {
	if len(disks) == 0 {
		return invalid("a VM needs a disk to boot from")
	}
	targets := make(map[string]bool)
	for _, d := range disks {
		if err := validateDisk(d); err != nil {
			return err
		}
		if d.Target != "" && targets[d.Target] {
			return invalid("two disks have target %s", d.Target)
		}
		targets[d.Target] = true
	}
	return nil
}

func validateDisk(d Disk) error {
	bus, known := buses[d.bus()]
	switch {
	case !known:
		return invalid("bus %q of disk %s is none of scsi, virtio, sata and ide", d.Bus, d.Path)
	case d.CDROM && d.bus() == BusVirtio:
		return invalid("CD-ROM %s cannot be on bus virtio, use scsi", d.Path)
	case d.Target != "" && !bus.pattern.MatchString(d.Target):
		return invalid("target %q of disk %s must be %sa to %sz", d.Target, d.Path, bus.prefix, bus.prefix)
	case d.Serial != "" && (!serialPattern.MatchString(d.Serial) || len(d.Serial) > maxSerialLength):
		return invalid("serial %q of disk %s must be up to %d letters, digits, dots, pluses, dashes and underscores",
			d.Serial, d.Path, maxSerialLength)
	}
	if d.RBD != nil {
		return errors.Join(validateDriver(d), validateRBD(d))
	}
	if d.Handed != "" && (d.Device || d.ReadOnly || d.Backing != nil || !serialPattern.MatchString(d.Handed)) {
		return invalid("disk %s cannot be handed over as %q: only a writable file without an image under it can", d.Path, d.Handed)
	}
	if err := validateDriver(d); err != nil {
		return err
	}
	return validateChain(d)
}

func validateDriver(d Disk) error {
	for _, word := range []struct {
		what, value string
		allowed     []string
	}{
		{"cache", d.Cache, []string{CacheNone, CacheWriteThrough, CacheWriteBack, CacheDirectSync, CacheUnsafe}},
		{"io", d.IO, []string{IOThreads, IONative}},
		{"discard", d.Discard, []string{DiscardUnmap, DiscardIgnore}},
	} {
		if word.value != "" && !slices.Contains(word.allowed, word.value) {
			return invalid("%s %q of disk %s is none of %s", word.what, word.value, d.Path, strings.Join(word.allowed, ", "))
		}
	}
	var driver libvirtxml.DomainDiskDriver
	setDriver(&driver, d)
	if driver.IO == IONative && !uncached(driver.Cache) {
		return invalid("io %s of disk %s needs the cache %s or %s", IONative, d.Path, CacheNone, CacheDirectSync)
	}
	return nil
}

// validateChain looks at the files of a disk and of all images under it.
func validateChain(d Disk) error {
	seen := make(map[string]bool)
	for layer := &d; layer != nil; layer = layer.Backing {
		if err := validatePath("disk", layer.Path); err != nil {
			return err
		}
		switch {
		case layer.Format != FormatQCOW2 && layer.Format != FormatRaw:
			return invalid("format %q of disk %s is neither %q nor %q", layer.Format, layer.Path, FormatQCOW2, FormatRaw)
		case layer.Offset < 0 || layer.Size < 0 || layer.Offset > 0 && layer.Size == 0 || layer.Size > 0 && layer.Format != FormatRaw:
			return invalid("disk %s cannot be a part of %d bytes from byte %d of format %s", layer.Path, layer.Size, layer.Offset, layer.Format)
		case layer.Backing != nil && layer.Format != FormatQCOW2:
			return invalid("disk %s of format %s cannot lie over another image", layer.Path, layer.Format)
		case seen[layer.Path]:
			return invalid("disk %s lies over itself", layer.Path)
		case len(seen) == maxBackingLength:
			return invalid("disk %s lies over more than %d images", d.Path, maxBackingLength-1)
		}
		seen[layer.Path] = true
	}
	return nil
}

// plain says whether XML can carry the text unchanged: valid UTF-8 without
// control characters and without the code points that XML excludes.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || r == 0xFFFE || r == 0xFFFF
	})
}
