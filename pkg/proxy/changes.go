package proxy

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// manyChanges is how many changes a list may gather before the proxy asks for a
// new one by itself; kubelet asks every second.
const manyChanges = 256

// deed is a call that has succeeded, in terms of the caller's IDs.
type deed struct {
	backend         *backend
	request, answer []byte
	at              time.Time
}

// effects are the methods that change lists of sandboxes or containers, and how
// their success changes the memory of their owner.
func effects() map[string]func(*deed) error {
	return map[string]func(*deed) error{
		"RunPodSandbox":    (*deed).addSandbox,
		"StopPodSandbox":   (*deed).stopSandbox,
		"RemovePodSandbox": (*deed).removeSandbox,
		"CreateContainer":  (*deed).addContainer,
		"StartContainer":   (*deed).startContainer,
		"StopContainer":    (*deed).stopContainer,
		"RemoveContainer":  (*deed).removeContainer,
		"RestorePod":       (*deed).restore,
	}
}

// note remembers what a successful call did to the backend's lists.
func (b *backend) note(r *rule, request, answer *frame) {
	if r.effect == nil {
		return
	}
	d := &deed{backend: b, request: request.bytes(), answer: answer.bytes(), at: time.Now()}
	if err := r.effect(d); err != nil {
		b.log.Warn("what a call did is not noted", "method", r.method, "error", err)
	}
	b.needsSaving()
}

// on notes a change of one object in one of the owner's lists.
func (d *deed) on(list, id string, apply func(c *change)) {
	s := d.backend.source(d.backend.node.rules.runtime(list))
	if s.memory.note(id, apply) >= manyChanges {
		d.backend.wg.Go(func() { _ = s.refresh(d.backend.ctx) }) // if it fails, the next change tries again
	}
}

const (
	sandboxes  = "ListPodSandbox"
	containers = "ListContainers"
)

// target is the ID in field 1 of the request, where all methods that act on one
// object have it; routes_test.go checks that.
func (d *deed) target() (string, error) { return first(d.request) }

// first is the string in field 1 of a message.
func first(message []byte) (string, error) {
	id, err := wire.Path{1}.Value(message)
	return string(id), err
}

func setState(number protowire.Number, state uint64) func(c *change) {
	field := encodeState(number, state)
	return func(c *change) { c.state = field }
}

func encodeState(number protowire.Number, state uint64) []byte {
	field := protowire.AppendTag(nil, number, protowire.VarintType)
	return protowire.AppendVarint(field, state)
}

func (d *deed) addSandbox() error {
	id, err := first(d.answer)
	if err != nil {
		return err
	}
	request := bytes.Clone(d.request)
	d.on(sandboxes, id, func(c *change) {
		c.item = func() ([]byte, error) {
			var q runtimeapi.RunPodSandboxRequest
			if err := proto.Unmarshal(request, &q); err != nil {
				return nil, err
			}
			return proto.Marshal(d.sandbox(id, q.GetConfig(), q.GetRuntimeHandler()))
		}
	})
	return nil
}

func (d *deed) stopSandbox() error {
	id, err := d.target()
	d.on(sandboxes, id, setState(sandboxItemState, uint64(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)))
	exited := encodeState(containerState, uint64(runtimeapi.ContainerState_CONTAINER_EXITED))
	d.on(containers, id, func(c *change) { c.children.state = exited })
	return err
}

func (d *deed) removeSandbox() error {
	id, err := d.target()
	d.on(sandboxes, id, func(c *change) { c.gone = true })
	d.on(containers, id, func(c *change) { c.children.gone = true })
	return err
}

func (d *deed) addContainer() error {
	id, err := first(d.answer)
	if err != nil {
		return err
	}
	request := bytes.Clone(d.request)
	d.on(containers, id, func(c *change) {
		c.item = func() ([]byte, error) {
			var q runtimeapi.CreateContainerRequest
			if err := proto.Unmarshal(request, &q); err != nil {
				return nil, err
			}
			return proto.Marshal(d.container(id, q.GetPodSandboxId(), q.GetConfig()))
		}
	})
	return nil
}

func (d *deed) startContainer() error {
	id, err := d.target()
	d.on(containers, id, setState(containerState, uint64(runtimeapi.ContainerState_CONTAINER_RUNNING)))
	return err
}

func (d *deed) stopContainer() error {
	id, err := d.target()
	d.on(containers, id, setState(containerState, uint64(runtimeapi.ContainerState_CONTAINER_EXITED)))
	return err
}

func (d *deed) removeContainer() error {
	id, err := d.target()
	d.on(containers, id, func(c *change) { c.gone = true })
	return err
}

func (d *deed) restore() error {
	var q runtimeapi.RestorePodRequest
	var a runtimeapi.RestorePodResponse
	if err := proto.Unmarshal(d.request, &q); err != nil {
		return err
	}
	if err := proto.Unmarshal(d.answer, &a); err != nil {
		return err
	}
	d.on(sandboxes, a.GetPodSandboxId(), func(c *change) {
		c.item = func() ([]byte, error) {
			return proto.Marshal(d.sandbox(a.GetPodSandboxId(), q.GetConfig(), q.GetRuntimeHandler()))
		}
	})
	for _, restored := range a.GetRestoredContainers() {
		for _, config := range q.GetContainerConfigs() {
			if config.GetMetadata().GetName() != restored.GetName() {
				continue
			}
			d.on(containers, restored.GetContainerId(), func(c *change) {
				c.item = func() ([]byte, error) {
					return proto.Marshal(d.container(restored.GetContainerId(), a.GetPodSandboxId(), config))
				}
			})
		}
	}
	return nil
}

func (d *deed) sandbox(id string, config *runtimeapi.PodSandboxConfig, handler string) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id: id, Metadata: config.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: d.at.UnixNano(),
		Labels: config.GetLabels(), Annotations: config.GetAnnotations(), RuntimeHandler: handler,
	}
}

func (d *deed) container(id, sandbox string, config *runtimeapi.ContainerConfig) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id: id, PodSandboxId: sandbox, Metadata: config.GetMetadata(), Image: config.GetImage(),
		ImageRef: config.GetImage().GetImage(), ImageId: config.GetImage().GetImage(),
		State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: d.at.UnixNano(),
		Labels: config.GetLabels(), Annotations: config.GetAnnotations(),
	}
}
