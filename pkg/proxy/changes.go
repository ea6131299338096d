package proxy

import (
	"bytes"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// manyChanges is how many changes a list may gather before the proxy asks for a
// new one by itself; kubelet asks every second.
const manyChanges = 256

// deed is a call that has succeeded, in terms of the caller's IDs. It is decoded
// only when a list is needed that does not know of it.
type deed struct {
	request, answer []byte
	at              time.Time
}

type (
	sandboxChange   func(d *deed, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandbox, error)
	containerChange func(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error)
)

// effect is what a call of one method does to the lists of its owner.
type effect struct {
	sandboxes  sandboxChange
	containers containerChange
}

// effects are the methods that change lists of sandboxes or containers.
func effects() map[string]effect {
	return map[string]effect{
		"RunPodSandbox":    {sandboxes: addSandbox},
		"StopPodSandbox":   {sandboxes: stopSandbox},
		"RemovePodSandbox": {sandboxes: removeSandbox, containers: removeContainersOfSandbox},
		"CreateContainer":  {containers: addContainer},
		"StartContainer":   {containers: startContainer},
		"StopContainer":    {containers: stopContainer},
		"RemoveContainer":  {containers: removeContainer},
		"RestorePod":       {sandboxes: restoreSandbox, containers: restoreContainers},
	}
}

// note remembers what a successful call did to the backend's lists.
func (b *backend) note(r *rule, request, answer *frame) {
	e := r.effect
	if e.sandboxes == nil && e.containers == nil {
		return
	}
	d := &deed{request: bytes.Clone(request.bytes()), answer: bytes.Clone(answer.bytes()), at: time.Now()}
	if e.sandboxes != nil {
		b.change("ListPodSandbox", func(list []byte) ([]byte, error) {
			var l runtimeapi.ListPodSandboxResponse
			return edit(list, &l, func() (err error) {
				l.Items, err = e.sandboxes(d, l.Items)
				return err
			})
		})
	}
	if e.containers != nil {
		b.change("ListContainers", func(list []byte) ([]byte, error) {
			var l runtimeapi.ListContainersResponse
			return edit(list, &l, func() (err error) {
				l.Containers, err = e.containers(d, l.Containers)
				return err
			})
		})
	}
}

// change notes a change of one of the backend's lists.
func (b *backend) change(method string, apply func(list []byte) ([]byte, error)) {
	s := b.source(b.node.rules.runtime(method))
	if s.memory.note(apply) >= manyChanges {
		b.wg.Go(func() { _ = s.refresh(b.ctx) }) // if it fails, the next change tries again
	}
	b.needsSaving()
}

// edit decodes a list, changes it and encodes it again.
func edit(list []byte, into proto.Message, change func() error) ([]byte, error) {
	if err := proto.Unmarshal(list, into); err != nil {
		return nil, err
	}
	if err := change(); err != nil {
		return nil, err
	}
	return proto.Marshal(into)
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

func withSandbox(items []*runtimeapi.PodSandbox, added *runtimeapi.PodSandbox) []*runtimeapi.PodSandbox {
	if slices.ContainsFunc(items, func(s *runtimeapi.PodSandbox) bool { return s.GetId() == added.GetId() }) {
		return items // the list was made while the call was running
	}
	return append(items, added)
}

func withContainer(items []*runtimeapi.Container, added *runtimeapi.Container) []*runtimeapi.Container {
	if slices.ContainsFunc(items, func(c *runtimeapi.Container) bool { return c.GetId() == added.GetId() }) {
		return items
	}
	return append(items, added)
}

func addSandbox(d *deed, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandbox, error) {
	var q runtimeapi.RunPodSandboxRequest
	var a runtimeapi.RunPodSandboxResponse
	if err := d.decode(&q, &a); err != nil {
		return nil, err
	}
	return withSandbox(items, d.sandbox(a.GetPodSandboxId(), q.GetConfig(), q.GetRuntimeHandler())), nil
}

func restoreSandbox(d *deed, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandbox, error) {
	var q runtimeapi.RestorePodRequest
	var a runtimeapi.RestorePodResponse
	if err := d.decode(&q, &a); err != nil {
		return nil, err
	}
	return withSandbox(items, d.sandbox(a.GetPodSandboxId(), q.GetConfig(), q.GetRuntimeHandler())), nil
}

func stopSandbox(d *deed, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandbox, error) {
	var q runtimeapi.StopPodSandboxRequest
	if err := d.decode(&q, nil); err != nil {
		return nil, err
	}
	for _, s := range items {
		if s.GetId() == q.GetPodSandboxId() {
			s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	return items, nil
}

func removeSandbox(d *deed, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandbox, error) {
	var q runtimeapi.RemovePodSandboxRequest
	if err := d.decode(&q, nil); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(items, func(s *runtimeapi.PodSandbox) bool { return s.GetId() == q.GetPodSandboxId() }), nil
}

func removeContainersOfSandbox(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.RemovePodSandboxRequest
	if err := d.decode(&q, nil); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(items, func(c *runtimeapi.Container) bool { return c.GetPodSandboxId() == q.GetPodSandboxId() }), nil
}

func addContainer(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.CreateContainerRequest
	var a runtimeapi.CreateContainerResponse
	if err := d.decode(&q, &a); err != nil {
		return nil, err
	}
	return withContainer(items, d.container(a.GetContainerId(), q.GetPodSandboxId(), q.GetConfig())), nil
}

func restoreContainers(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.RestorePodRequest
	var a runtimeapi.RestorePodResponse
	if err := d.decode(&q, &a); err != nil {
		return nil, err
	}
	for _, restored := range a.GetRestoredContainers() {
		for _, config := range q.GetContainerConfigs() {
			if config.GetMetadata().GetName() == restored.GetName() {
				items = withContainer(items, d.container(restored.GetContainerId(), a.GetPodSandboxId(), config))
			}
		}
	}
	return items, nil
}

func startContainer(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.StartContainerRequest
	err := d.decode(&q, nil)
	return withState(items, q.GetContainerId(), runtimeapi.ContainerState_CONTAINER_RUNNING), err
}

func stopContainer(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.StopContainerRequest
	err := d.decode(&q, nil)
	return withState(items, q.GetContainerId(), runtimeapi.ContainerState_CONTAINER_EXITED), err
}

func withState(items []*runtimeapi.Container, id string, state runtimeapi.ContainerState) []*runtimeapi.Container {
	for _, c := range items {
		if c.GetId() == id {
			c.State = state
		}
	}
	return items
}

func removeContainer(d *deed, items []*runtimeapi.Container) ([]*runtimeapi.Container, error) {
	var q runtimeapi.RemoveContainerRequest
	if err := d.decode(&q, nil); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(items, func(c *runtimeapi.Container) bool { return c.GetId() == q.GetContainerId() }), nil
}

// decode reads the request and, if answer is not nil, the answer.
func (d *deed) decode(request, answer proto.Message) error {
	if err := proto.Unmarshal(d.request, request); err != nil {
		return err
	}
	if answer == nil {
		return nil
	}
	return proto.Unmarshal(d.answer, answer)
}
