package proxy

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// remembered builds a memory of containers "a" and "b" in sandbox "s" and
// returns it with the time from which changes are newer than the list.
func remembered(t *testing.T) *memory {
	t.Helper()
	m := &memory{}
	list := must[[]byte](t)(proto.Marshal(&runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{Id: "a", PodSandboxId: "s"}, {Id: "b", PodSandboxId: "s", State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}}))
	m.remember(frameOf(list), time.Now())
	return m
}

func states(t *testing.T, m *memory) []string {
	t.Helper()
	list, _, err := m.recall()
	if err != nil {
		t.Fatal(err)
	}
	var decoded runtimeapi.ListContainersResponse
	if err := proto.Unmarshal(list.bytes(), &decoded); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, c := range decoded.GetContainers() {
		all = append(all, c.GetId()+" "+c.GetState().String()[len("CONTAINER_"):])
	}
	return all
}

func isNew(id string) func(c *change) {
	return func(c *change) {
		c.item = func() ([]byte, error) { return proto.Marshal(&runtimeapi.Container{Id: id, PodSandboxId: "s"}) }
	}
}

func isGone(c *change)     { c.gone = true }
func takesAll(c *change)   { c.children.gone = true }
func endsItsOwn(c *change) { c.children.state = encodeState(containerState, 2) }

func TestChangesOfAMemory(t *testing.T) {
	running, exited := setState(containerState, 1), setState(containerState, 2)
	type step struct {
		id    string
		apply func(c *change)
	}
	for name, c := range map[string]struct {
		steps []step
		want  []string
	}{
		"none":                      {nil, []string{"a CREATED", "b RUNNING"}},
		"a state":                   {[]step{{"a", running}}, []string{"a RUNNING", "b RUNNING"}},
		"the last state counts":     {[]step{{"a", running}, {"a", exited}}, []string{"a EXITED", "b RUNNING"}},
		"new":                       {[]step{{"c", isNew("c")}}, []string{"a CREATED", "b RUNNING", "c CREATED"}},
		"new and started":           {[]step{{"c", isNew("c")}, {"c", running}}, []string{"a CREATED", "b RUNNING", "c RUNNING"}},
		"new but listed already":    {[]step{{"b", isNew("b")}}, []string{"a CREATED", "b RUNNING"}},
		"gone":                      {[]step{{"a", isGone}}, []string{"b RUNNING"}},
		"new and gone":              {[]step{{"c", isNew("c")}, {"c", isGone}}, []string{"a CREATED", "b RUNNING"}},
		"stopped after removal":     {[]step{{"a", isGone}, {"a", exited}}, []string{"b RUNNING"}},
		"sandbox gone":              {[]step{{"s", takesAll}}, nil},
		"sandbox of a new one gone": {[]step{{"c", isNew("c")}, {"s", takesAll}}, nil},
		"another sandbox gone":      {[]step{{"x", takesAll}}, []string{"a CREATED", "b RUNNING"}},
		"sandbox stopped":           {[]step{{"c", isNew("c")}, {"c", running}, {"s", endsItsOwn}}, []string{"a EXITED", "b EXITED", "c EXITED"}},
		"stopped, one removed":      {[]step{{"s", endsItsOwn}, {"a", isGone}}, []string{"b EXITED"}},
		"state of an unknown one":   {[]step{{"x", exited}}, []string{"a CREATED", "b RUNNING"}},
		"two new, in their order":   {[]step{{"z", isNew("z")}, {"c", isNew("c")}}, []string{"a CREATED", "b RUNNING", "z CREATED", "c CREATED"}},
		"back to state of the list": {[]step{{"b", exited}, {"b", running}}, []string{"a CREATED", "b RUNNING"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := remembered(t)
			for _, s := range c.steps {
				m.note(s.id, s.apply)
			}
			if got := states(t, m); !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A list knows what happened before it was asked for, and not what happened
// while it was under way; an older list does not replace a newer one.
func TestMemoryOrdersListsAndChanges(t *testing.T) {
	m := remembered(t)
	asked := time.Now()
	m.note("a", isGone)
	list := must[[]byte](t)(proto.Marshal(&runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "a"}, {Id: "d"}}}))
	if !m.remember(frameOf(list), asked) {
		t.Error("a newer list is not kept")
	}
	if got := states(t, m); !slices.Equal(got, []string{"d CREATED"}) {
		t.Errorf("%q: what was removed while the list was under way is back", got)
	}
	if !m.remember(frameOf(list), time.Now()) {
		t.Error("a newer list is not kept")
	}
	if got := states(t, m); !slices.Equal(got, []string{"a CREATED", "d CREATED"}) {
		t.Errorf("%q: the runtime's own word does not count", got)
	}
	if m.remember(frameOf(nil), asked) {
		t.Error("an older list replaces a newer one")
	}
}

func TestEmptyMemory(t *testing.T) {
	m := &memory{}
	if n := m.note("a", isGone); n != 0 || m.isKnown() {
		t.Errorf("%d changes of nothing", n)
	}
	if list, _, err := m.recall(); list != nil || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}

// Many changes without a list make the proxy ask for one.
func TestManyChangesAskForAList(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	before := len(s.vm.got("ListContainers"))
	for range manyChanges {
		must[*runtimeapi.StopContainerResponse](t)(s.StopContainer(ctx(t), &runtimeapi.StopContainerRequest{ContainerId: "vm." + s.vm.containers[0].GetId()}))
	}
	if got := len(s.vm.got("ListContainers")); got != before {
		t.Errorf("%d lists because of one object", got-before)
	}
	for range manyChanges {
		must[*runtimeapi.CreateContainerResponse](t)(s.CreateContainer(ctx(t), create("vm."+s.vm.sandboxes[0].GetId(), image("vm.ambipod.io/x"))))
	}
	eventually(t, "the proxy asks", func() bool { return len(s.vm.got("ListContainers")) > before })
}

// A restored pod is in the lists though its runtime dies at once.
func TestRestoredPodIsRemembered(t *testing.T) {
	s := newSetup(t)
	s.populate(t)
	answer := must[*runtimeapi.RestorePodResponse](t)(s.RestorePod(ctx(t), &runtimeapi.RestorePodRequest{
		Config: pod(), RuntimeHandler: "vm", ContainerConfigs: []*runtimeapi.ContainerConfig{{Metadata: &runtimeapi.ContainerMetadata{Name: "restored"}}},
	}))
	s.vm.stop()
	containers := must[*runtimeapi.ListContainersResponse](t)(s.ListContainers(ctx(t), &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{PodSandboxId: answer.GetPodSandboxId()},
	})).GetContainers()
	if len(containers) != 1 || containers[0].GetId() != answer.GetRestoredContainers()[0].GetContainerId() || containers[0].GetMetadata().GetName() != "restored" {
		t.Errorf("containers %v", containers)
	}
}
