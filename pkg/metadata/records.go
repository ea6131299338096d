package metadata

import (
	"encoding/json"
	"time"
)

// SandboxState says how far the life of a sandbox has gone.
type SandboxState string

// The states of a sandbox, in the order in which they are passed through.
const (
	SandboxCreating SandboxState = "creating" // intent only: whatever exists of it is swept at the next start
	SandboxReady    SandboxState = "ready"
	SandboxStopped  SandboxState = "stopped"
)

// Sandbox is the record of one pod sandbox.
type Sandbox struct {
	// Immutable.
	ID        string    `json:"id"`        // 64 hex digits
	Config    []byte    `json:"config"`    // the CRI's PodSandboxConfig, protobuf wire format; opaque here
	Handler   string    `json:"handler"`   // runtime handler it was asked for, "" for the default
	CreatedAt time.Time `json:"createdAt"` // when RunPodSandbox began

	// Mutable.
	State   SandboxState    `json:"state"`
	Network json.RawMessage `json:"network,omitempty"` // the CNI result; opaque here
}

// Container is the record of one VM. Its CRI state follows from the times:
// created while StartedAt is zero, running while FinishedAt is zero, exited after.
type Container struct {
	// Immutable.
	ID         string    `json:"id"` // 64 hex digits
	SandboxID  string    `json:"sandboxId"`
	Config     []byte    `json:"config"`     // the CRI's ContainerConfig, protobuf wire format; opaque here
	ImageID    string    `json:"imageId"`    // the image store's ID, 64 hex digits
	DomainUUID string    `json:"domainUuid"` // libvirt's name for the VM
	LogPath    string    `json:"logPath"`    // absolute path of the CRI log, "" for none
	FDKey      string    `json:"fdKey"`      // with which its vmwrapper may fetch the tap descriptors, once
	CreatedAt  time.Time `json:"createdAt"`

	// Mutable.
	Defined     bool          `json:"defined"` // disks and domain are complete; false while CreateContainer works
	MemoryBytes int64         `json:"memoryBytes"`
	VCPUs       int           `json:"vcpus"`
	Resources   []byte        `json:"resources,omitempty"` // the CRI's LinuxContainerResources in force, protobuf wire format
	StartedAt   time.Time     `json:"startedAt,omitzero"`
	FinishedAt  time.Time     `json:"finishedAt,omitzero"`
	ExitCode    int32         `json:"exitCode,omitempty"`
	Reason      string        `json:"reason,omitempty"`      // one word, as kubelet shows it: Completed, Error, OOMKilled …
	Message     string        `json:"message,omitempty"`     // one sentence for people
	Reboots     uint64        `json:"reboots,omitempty"`     // of the guest by itself, as far as they were seen
	RebootedAt  time.Time     `json:"rebootedAt,omitzero"`   // the last reboot's first reset
	RebootedCPU time.Duration `json:"rebootedCPU,omitempty"` // processor time that the VM had used by then
	Panicked    bool          `json:"panicked,omitempty"`    // the guest's kernel said so
	Removing    bool          `json:"removing,omitempty"`
}

// Running reports whether the VM has been started and not been seen to end.
func (c Container) Running() bool { return !c.StartedAt.IsZero() && c.FinishedAt.IsZero() }

// Exited reports whether the VM has ended.
func (c Container) Exited() bool { return !c.FinishedAt.IsZero() }
