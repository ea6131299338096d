package proxy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// The seeds in testdata/captured are messages that crictl and containerd 2.4
// exchanged, one file each: <method>.<request|answer>.<number>.
func captured(t testing.TB, direction string) map[string][][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "captured", "*."+direction+".*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no captured messages: %v", err)
	}
	messages := map[string][][]byte{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		method, _, _ := strings.Cut(filepath.Base(path), ".")
		messages[method] = append(messages[method], text)
	}
	return messages
}

func sortedRules(t testing.TB) []*rule {
	t.Helper()
	var all []*rule
	for _, r := range mustRules(t).rules {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *rule) int { return strings.Compare(a.full, b.full) })
	return all
}

// seed adds every captured message under its own method and under another one.
func seed(f *testing.F, rules []*rule, direction string) {
	for method, messages := range captured(f, direction) {
		for i, r := range rules {
			if r.method == method {
				for _, m := range messages {
					f.Add(uint(i), m)
					f.Add(uint(i+1), m)
				}
			}
		}
	}
	f.Add(uint(0), []byte{})
	f.Add(uint(1), []byte{0x0a, 0xff})
}

// FuzzRewriteAnswer compares rewriting on the wire with rewriting decoded
// messages, in both directions.
func FuzzRewriteAnswer(f *testing.F) {
	rules := sortedRules(f)
	kinds := allKinds(f)
	seed(f, rules, "answer")
	f.Fuzz(func(t *testing.T, which uint, message []byte) {
		r := rules[which%uint(len(rules))]
		checkRewrite(t, r.response, r.answer, message, kinds)
	})
}

// FuzzRewriteRequest does the same with requests.
func FuzzRewriteRequest(f *testing.F) {
	rules := sortedRules(f)
	kinds := allKinds(f)
	seed(f, rules, "request")
	f.Fuzz(func(t *testing.T, which uint, message []byte) {
		r := rules[which%uint(len(rules))]
		checkRewrite(t, r.request, r.asks, message, kinds)
	})
}

func checkRewrite(t *testing.T, schema *wire.Schema, descriptor protoreflect.MessageDescriptor, message []byte, kinds wire.Kinds) {
	t.Helper()
	w := rewrites{prefix: "vm."}
	source := bytes.Clone(message)
	for _, edit := range []wire.Edit{w.add, w.strip} {
		out, changed, err := schema.Rewrite(message, edit)
		if !bytes.Equal(message, source) {
			t.Fatal("the source was modified")
		}
		decoded := dynamicpb.NewMessage(descriptor)
		if proto.Unmarshal(message, decoded) != nil {
			continue // what a decoder refuses may be an error here or not
		}
		if err != nil {
			t.Fatalf("a decoder accepts what rewriting refuses: %v", err)
		}
		if !changed && !bytes.Equal(out, message) {
			t.Fatal("unchanged, but other bytes")
		}
		reference := proto.CloneOf(decoded)
		rewriteReflected(reference, kinds, edit)
		again := dynamicpb.NewMessage(descriptor)
		if err := proto.Unmarshal(out, again); err != nil {
			t.Fatalf("rewriting makes an unreadable message: %v", err)
		}
		if !proto.Equal(again, reference) {
			t.Fatalf("on the wire: %v\ndecoded: %v", again, reference)
		}
	}
	checkIdentity(t, schema, message, w)
}

// checkIdentity: stripping what was added gives the same bytes again, unless the
// message had such a prefix before or was not in the shortest encoding.
func checkIdentity(t *testing.T, schema *wire.Schema, message []byte, w rewrites) {
	t.Helper()
	if bytes.Contains(message, []byte(w.prefix)) {
		return
	}
	there, changed, err := schema.Rewrite(message, w.add)
	if err != nil || !changed {
		return
	}
	back, _, err := schema.Rewrite(there, w.strip)
	if err != nil {
		t.Fatalf("the rewritten message cannot be read: %v", err)
	}
	if len(back) == len(message) && !bytes.Equal(back, message) || len(back) > len(message) {
		t.Fatalf("%x became %x", message, back)
	}
}

func allKinds(t testing.TB) wire.Kinds {
	t.Helper()
	kinds, err := collectKinds(runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

// rewriteReflected is the reference: it edits every field that the table names.
func rewriteReflected(m protoreflect.Message, kinds wire.Kinds, edit wire.Edit) {
	edited := func(kind wire.Kind, v protoreflect.Value) protoreflect.Value {
		if head, tail, ok := edit(kind, []byte(v.String())); ok {
			return protoreflect.ValueOfString(head + string(tail))
		}
		return v
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		kind := kinds[field.FullName()]
		switch {
		case kind != 0 && field.IsList():
			for i := range value.List().Len() {
				value.List().Set(i, edited(kind, value.List().Get(i)))
			}
		case kind != 0:
			m.Set(field, edited(kind, value))
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				rewriteReflected(value.List().Get(i).Message(), kinds, edit)
			}
		default:
			rewriteReflected(value.Message(), kinds, edit)
		}
		return true
	})
}

// FuzzCheck: the proxy accepts from a runtime exactly what a decoder accepts.
func FuzzCheck(f *testing.F) {
	rules := sortedRules(f)
	seed(f, rules, "answer")
	f.Fuzz(func(t *testing.T, which uint, message []byte) {
		r := rules[which%uint(len(rules))]
		checked, decoded := r.shape.Check(message), proto.Unmarshal(message, dynamicpb.NewMessage(r.answer))
		if (checked == nil) != (decoded == nil) {
			t.Fatalf("%s: the proxy says %v, a decoder %v", r.method, checked, decoded)
		}
	})
}

// FuzzDecide: no request makes routing panic, and one that a decoder can read
// goes where the decoded ID says.
func FuzzDecide(f *testing.F) {
	rules := sortedRules(f)
	seed(f, rules, "request")
	v := paperView(DefaultConfig(), mustRules(f))
	f.Fuzz(func(t *testing.T, which uint, message []byte) {
		r := rules[which%uint(len(rules))]
		d, err := v.decide(r, message)
		if err != nil || d.nowhere || r.ids != "container_id" && r.ids != "pod_sandbox_id" || r.image != "" {
			return
		}
		decoded := dynamicpb.NewMessage(r.asks)
		if proto.Unmarshal(message, decoded) != nil {
			return
		}
		id := decoded.Get(r.asks.Fields().ByName(protoreflect.Name(r.ids))).String()
		if owner := v.ownerOf([]byte(id)); id != "" && owner != d.backend {
			t.Fatalf("%q goes to %v, its owner is %s", id, d.backend, owner.name)
		}
	})
}

// FuzzConfig: no configuration file makes the reader panic, and one that it
// accepts is valid; an error is one line that names the file and a line.
func FuzzConfig(f *testing.F) {
	for _, c := range badConfigs() {
		f.Add(c.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		config, err := ParseConfig("f.yaml", []byte(text))
		switch {
		case err == nil && config.validate() != nil:
			t.Fatal("an invalid configuration is accepted")
		case err != nil && (!strings.HasPrefix(err.Error(), "f.yaml, line ") || strings.Contains(fmt.Sprint(err), "\n")):
			t.Fatalf("error %q", err)
		}
	})
}
