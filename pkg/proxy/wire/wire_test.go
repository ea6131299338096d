package wire_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const prefix = "vm."

// add and strip are what the proxy does to IDs.
func add(_ wire.Kind, value []byte) (string, []byte, bool) { return prefix, value, len(value) > 0 }

func strip(_ wire.Kind, value []byte) (string, []byte, bool) {
	bare, ok := bytes.CutPrefix(value, []byte(prefix))
	return "", bare, ok
}

func listSchema() *wire.Schema {
	return wire.Compile((&runtimeapi.ListContainersResponse{}).ProtoReflect().Descriptor(), wire.Kinds{
		"runtime.v1.Container.id": 1, "runtime.v1.Container.pod_sandbox_id": 1, "runtime.v1.ImageSpec.image": 1,
	})
}

func container(id string) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id: id, PodSandboxId: "s" + id, Image: &runtimeapi.ImageSpec{Image: "i" + id, Annotations: map[string]string{"k": "v"}},
		ImageRef: "untouched", Labels: map[string]string{"a": "b"}, CreatedAt: 7,
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRewrite(t *testing.T) {
	for name, id := range map[string]string{
		"short":                           "1",
		"length of the item grows a byte": strings.Repeat("1", 20),
		"length grows to three bytes":     strings.Repeat("1", 5450),
		"empty":                           "",
	} {
		t.Run(name, func(t *testing.T) {
			list := &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{container(id), container("other")}}
			before := marshal(t, list)
			src := bytes.Clone(before)
			out, changed, err := listSchema().Rewrite(src, add)
			if err != nil || !changed {
				t.Fatalf("changed %v, %v", changed, err)
			}
			for _, c := range list.GetContainers() {
				for _, field := range []*string{&c.Id, &c.PodSandboxId, &c.Image.Image} {
					if *field != "" {
						*field = prefix + *field
					}
				}
			}
			if want := marshal(t, list); !bytes.Equal(out, want) {
				t.Errorf("got  %x\nwant %x", out, want)
			}
			if !bytes.Equal(src, before) {
				t.Error("the source was modified")
			}
			back, changed, err := listSchema().Rewrite(out, strip)
			if err != nil || !changed || !bytes.Equal(back, before) {
				t.Errorf("stripping does not undo adding: %v, %v", changed, err)
			}
		})
	}
}

// What needs no change comes back as it is, in the same memory.
func TestRewriteOfNothing(t *testing.T) {
	src := marshal(t, &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{container("1")}})
	out, changed, err := listSchema().Rewrite(src, strip)
	if err != nil || changed || &out[0] != &src[0] {
		t.Errorf("changed %v, %v", changed, err)
	}
	var none *wire.Schema
	if out, changed, err := none.Rewrite(src, add); err != nil || changed || &out[0] != &src[0] {
		t.Errorf("a nil schema changed something: %v, %v", changed, err)
	}
	if s := wire.Compile((&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor(), wire.Kinds{"runtime.v1.Container.id": 1}); s != nil {
		t.Error("a message without such fields has a schema")
	}
}

// Odd but legal encodings around what is rewritten stay as they are.
func TestRewriteKeepsOddEncodings(t *testing.T) {
	odd := []byte{0x80 | 0x32, 0x00, 0x01, 'x'}                    // field 6 with a padded tag
	odd = append(odd, 0x38, 0x87, 0x80, 0x00)                      // created_at with a padded varint
	odd = protowire.AppendTag(odd, 1, protowire.VarintType)        // id as a number: not a string
	odd = protowire.AppendVarint(odd, 5)                           //
	odd = protowire.AppendTag(odd, 4000, protowire.StartGroupType) // an unknown group
	odd = protowire.AppendTag(odd, 4000, protowire.EndGroupType)
	item := protowire.AppendString(protowire.AppendTag(bytes.Clone(odd), 1, protowire.BytesType), "id")
	src := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), item)
	out, changed, err := listSchema().Rewrite(src, add)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	want := protowire.AppendString(protowire.AppendTag(bytes.Clone(odd), 1, protowire.BytesType), prefix+"id")
	if got := out[2:]; !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestMalformed(t *testing.T) {
	whole := marshal(t, &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{container("1")}})
	for n := 1; n < len(whole); n++ {
		if _, _, err := listSchema().Rewrite(whole[:n], add); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("cut after %d of %d bytes: %v, want ErrMalformed", n, len(whole), err)
		}
	}
}

func TestPath(t *testing.T) {
	request := &runtimeapi.CreateContainerRequest{
		PodSandboxId: "s", Config: &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "i", Annotations: map[string]string{"a": "1", "b": ""}}},
	}
	descriptor := request.ProtoReflect().Descriptor()
	path, err := wire.CompilePath(descriptor, "config.image.image")
	if err != nil {
		t.Fatal(err)
	}
	src := marshal(t, request)
	// A second occurrence of config is merged with the first, and the last image counts.
	src = append(src, marshal(t, &runtimeapi.CreateContainerRequest{Config: &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "j"}}})...)
	if got, err := path.Value(src); err != nil || string(got) != "j" {
		t.Errorf("%q, %v, want j", got, err)
	}
	var all []string
	err = path.Each(src, func(value []byte) error {
		all = append(all, string(value))
		return nil
	})
	if err != nil || strings.Join(all, " ") != "i j" {
		t.Errorf("%q, %v, want i and j", all, err)
	}
	annotations, err := wire.CompilePath(descriptor, "config.image.annotations")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	err = annotations.Entries(src, func(key, value []byte) error {
		found[string(key)] = string(value)
		return nil
	})
	if err != nil || len(found) != 2 || found["a"] != "1" || found["b"] != "" {
		t.Errorf("%v, %v", found, err)
	}
	stop := errors.New("stop")
	if err := annotations.Entries(src, func(_, _ []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the visitor's own error", err)
	}
	for _, wrong := range []string{"nonsense", "config.nonsense", "pod_sandbox_id.x", ""} {
		if _, err := wire.CompilePath(descriptor, wrong); err == nil {
			t.Errorf("path %q compiles", wrong)
		}
	}
}

// Check agrees with the decoder about every sort of field.
func TestCheck(t *testing.T) {
	whole := marshal(t, &runtimeapi.ContainerStatusResponse{
		Status: &runtimeapi.ContainerStatus{
			Id: "1", Labels: map[string]string{"a": "b"}, Image: &runtimeapi.ImageSpec{Image: "i"},
			User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{SupplementalGroups: []int64{1, 2, 300}}},
		},
		Info: map[string]string{"k": "v"},
	})
	shape := wire.ShapeOf((&runtimeapi.ContainerStatusResponse{}).ProtoReflect().Descriptor())
	for i := range whole {
		for _, b := range []byte{0x00, 0x01, 0x7f, 0x80, 0xff, whole[i] ^ 1, whole[i] ^ 0x80} {
			broken := bytes.Clone(whole)
			broken[i] = b
			agree(t, shape, &runtimeapi.ContainerStatusResponse{}, broken)
		}
		agree(t, shape, &runtimeapi.ContainerStatusResponse{}, whole[:i])
	}
}

// A message may contain itself.
func TestCheckOfRecursiveMessages(t *testing.T) {
	message, err := structpb.NewStruct(map[string]any{"a": map[string]any{"b": []any{1.5, "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	shape := wire.ShapeOf(message.ProtoReflect().Descriptor())
	whole := marshal(t, message)
	for i := range whole {
		broken := bytes.Clone(whole)
		broken[i] ^= 0xff
		agree(t, shape, &structpb.Struct{}, broken)
	}
	agree(t, shape, &structpb.Struct{}, whole)
}

func agree(t *testing.T, shape *wire.Shape, into proto.Message, src []byte) {
	t.Helper()
	checked, decoded := shape.Check(src), proto.Unmarshal(src, into)
	if (checked == nil) != (decoded == nil) {
		t.Errorf("check says %v, the decoder %v, of %x", checked, decoded, src)
	}
	if checked != nil && !errors.Is(checked, wire.ErrMalformed) {
		t.Errorf("%v is no ErrMalformed", checked)
	}
}
