package proxy

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// These tests call every method of the table through a real proxy, with requests and
// answers in which every field is set, those that nobody knows too.

// sampleID is every ID in a sample, as its runtime writes it.
var sampleID = hexID(5)

// fromTheFuture is a field that no message of the CRI has.
var fromTheFuture = protowire.AppendString(protowire.AppendTag(nil, 4711, protowire.BytesType), "from the future")

// sample is a message with every field set. Fields that the table names hold the ID.
func sample(descriptor protoreflect.MessageDescriptor, kinds map[protoreflect.FullName]bool, handler string) *dynamicpb.Message {
	m := dynamicpb.NewMessage(descriptor)
	m.SetUnknown(fromTheFuture)
	one := func(field protoreflect.FieldDescriptor) protoreflect.Value {
		switch field.Kind() {
		case protoreflect.MessageKind:
			return protoreflect.ValueOfMessage(sample(field.Message(), kinds, handler))
		case protoreflect.StringKind:
			switch {
			case kinds[field.FullName()]:
				return protoreflect.ValueOfString(sampleID)
			case field.Name() == "runtime_handler":
				return protoreflect.ValueOfString(handler)
			}
			return protoreflect.ValueOfString("some text")
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("some bytes"))
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(-7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(-7)
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(7)
		case protoreflect.FloatKind:
			return protoreflect.ValueOfFloat32(0.5)
		default:
			return protoreflect.ValueOfFloat64(0.5)
		}
	}
	fields := descriptor.Fields()
	for i := range fields.Len() {
		switch field := fields.Get(i); {
		case field.IsMap():
			m.Mutable(field).Map().Set(one(field.MapKey()).MapKey(), one(field.MapValue()))
		case field.IsList():
			m.Mutable(field).List().Append(one(field))
		default:
			m.Set(field, one(field))
		}
	}
	return m
}

// recorder is a runtime that answers every method with a sample and remembers what
// it was asked.
type recorder struct {
	name    string
	rules   *ruleset
	answers func(*rule) []byte
	streams bool // has the Stream* methods

	mu    sync.Mutex
	calls []recorded // guarded by mu
}

type recorded struct {
	method   string
	request  []byte
	metadata metadata.MD
}

func (r *recorder) serve(stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	rule := r.rules.rules[full]
	var request frame
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	r.mu.Lock()
	r.calls = append(r.calls, recorded{rule.method, request.bytes(), md})
	r.mu.Unlock()
	if rule.do == toEveryStream && !r.streams {
		return status.Error(codes.Unimplemented, "no streams here")
	}
	stream.SetTrailer(metadata.Pairs("trailer-of", r.name))
	if err := stream.SetHeader(metadata.Pairs("header-of", r.name)); err != nil {
		return err
	}
	if err := stream.SendMsg(frameOf(r.answers(rule))); err != nil {
		return err
	}
	if rule.do == toSubscribers {
		<-stream.Context().Done()
	}
	return nil
}

// got is what has arrived of a method.
func (r *recorder) got(method string) []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.calls), func(c recorded) bool { return c.method != method })
}

// samples is a setup whose runtimes are recorders.
type samples struct {
	*setup
	t       *testing.T
	rules   *ruleset
	ids     map[protoreflect.FullName]bool // fields with IDs
	def, vm *recorder
}

func newSamples(t *testing.T) *samples {
	t.Helper()
	s := &samples{setup: newStoppedSetup(t), t: t, rules: mustRules(t), ids: map[protoreflect.FullName]bool{}}
	for field := range allKinds(t) {
		s.ids[field] = true
	}
	answer := func(r *rule) []byte { return s.encode(sample(r.answer, s.ids, "")) }
	s.def = &recorder{name: "containerd", rules: s.rules, answers: answer, streams: true}
	s.vm = &recorder{name: "vm", rules: s.rules, answers: answer, streams: true}
	startRaw(t, s.setup.def.socket, s.def.serve)
	startRaw(t, s.setup.vm.socket, s.vm.serve)
	s.startProxy(t)
	s.waitConnected(t, "containerd", "vm")
	return s
}

func (s *samples) encode(m proto.Message) []byte {
	s.t.Helper()
	return must[[]byte](s.t)(proto.MarshalOptions{Deterministic: true}.Marshal(m))
}

// request is a sample request, about objects of the VM runtime or of the default.
func (s *samples) request(r *rule, ofVM bool) (asCallerSendsIt, bare proto.Message) {
	handler := map[bool]string{true: "vm"}[ofVM]
	asked := sample(r.asks, s.ids, handler)
	bare = proto.CloneOf(asked)
	if ofVM {
		rewriteReflected(asked, allKinds(s.t), rewrites{prefix: "vm."}.add)
	}
	return asked, bare
}

// prefixed is a sample answer of the VM runtime as callers must see it.
func (s *samples) prefixed(r *rule) proto.Message {
	m := sample(r.answer, s.ids, "")
	rewriteReflected(m, allKinds(s.t), rewrites{prefix: "vm."}.add)
	return m
}

// both is a list of both runtimes' sample answers, the default's first.
func (s *samples) both(r *rule) proto.Message {
	all := sample(r.answer, s.ids, "")
	proto.Merge(all, s.prefixed(r))
	return all
}

// call makes a call with a trace in its metadata.
func (s *samples) call(r *rule, request []byte) (answer []byte, header, trailer metadata.MD) {
	s.t.Helper()
	var f frame
	sent := metadata.AppendToOutgoingContext(ctx(s.t), "traceparent", "00-1-2-01")
	if err := s.conn.Invoke(sent, r.full, frameOf(request), &f, grpc.ForceCodecV2(codec{}), grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		s.t.Fatal(err)
	}
	return f.bytes(), header, trailer
}

// stream makes a call that is answered by a stream, with a trace in its metadata.
func (s *samples) stream(r *rule) grpc.ClientStream {
	s.t.Helper()
	sent := metadata.AppendToOutgoingContext(ctx(s.t), "traceparent", "00-1-2-01")
	stream := must[grpc.ClientStream](s.t)(s.conn.NewStream(sent, &grpc.StreamDesc{ServerStreams: true}, r.full, grpc.ForceCodecV2(codec{})))
	if err := errors.Join(stream.SendMsg(&frame{}), stream.CloseSend()); err != nil {
		s.t.Fatal(err)
	}
	return stream
}

// wantMessage compares an encoded message with a decoded one.
func (s *samples) wantMessage(what string, got []byte, want proto.Message) {
	s.t.Helper()
	decoded := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(got, decoded); err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	if !proto.Equal(decoded, want) {
		s.t.Errorf("%s is\n%v\nwant\n%v", what, decoded, want)
	}
}

func wantMetadata(t *testing.T, header, trailer metadata.MD, owner string) {
	t.Helper()
	if h, tr := header.Get("header-of"), trailer.Get("trailer-of"); !slices.Equal(h, []string{owner}) || !slices.Equal(tr, []string{owner}) {
		t.Errorf("the header is of %q, the trailer of %q, want both of %s", h, tr, owner)
	}
}

// wantTrace checks that a runtime was called once more, with the caller's metadata.
func wantTrace(t *testing.T, r *recorder, method string, before int) recorded {
	t.Helper()
	calls := r.got(method)
	if len(calls) != before+1 {
		t.Fatalf("%s got %d calls of %s, want 1", r.name, len(calls)-before, method)
	}
	last := calls[before]
	if got := last.metadata.Get("traceparent"); !slices.Equal(got, []string{"00-1-2-01"}) {
		t.Errorf("%s saw the trace %q", r.name, got)
	}
	return last
}

// Every method that has one owner: the default's calls pass byte for byte; a VM's
// lose and get the prefix in every ID and nothing else changes.
func TestEveryCallOfOneOwner(t *testing.T) {
	s := newSamples(t)
	for _, r := range sortedRules(t) {
		if r.do != toOwner {
			continue
		}
		t.Run(r.method+" of the default", func(t *testing.T) {
			s.t = t
			asked, _ := s.request(r, false)
			request := s.encode(asked)
			before, others := len(s.def.got(r.method)), len(s.vm.got(r.method))
			answer, header, trailer := s.call(r, request)
			if got := wantTrace(t, s.def, r.method, before).request; string(got) != string(request) {
				t.Errorf("the runtime got %x\nthe caller sent %x", got, request)
			}
			if want := s.def.answers(r); string(answer) != string(want) {
				t.Errorf("the caller got %x\nthe runtime sent %x", answer, want)
			}
			wantMetadata(t, header, trailer, "containerd")
			if n := len(s.vm.got(r.method)) - others; n != 0 {
				t.Errorf("the VM runtime got %d calls", n)
			}
		})
		if !r.hasSignals() {
			continue
		}
		t.Run(r.method+" of a VM", func(t *testing.T) {
			s.t = t
			asked, bare := s.request(r, true)
			before, others := len(s.vm.got(r.method)), len(s.def.got(r.method))
			answer, header, trailer := s.call(r, s.encode(asked))
			s.wantMessage("the request", wantTrace(t, s.vm, r.method, before).request, bare)
			s.wantMessage("the answer", answer, s.prefixed(r))
			wantMetadata(t, header, trailer, "vm")
			if n := len(s.def.got(r.method)) - others; n != 0 {
				t.Errorf("the default got %d calls", n)
			}
		})
	}
}

// Every list has the parts of both runtimes, and the metadata travels to both and
// comes back from the default.
func TestEveryList(t *testing.T) {
	s := newSamples(t)
	for _, r := range sortedRules(t) {
		if r.do != toEvery || !strings.HasPrefix(r.method, "List") || r.method == "ListMetricDescriptors" {
			continue
		}
		t.Run(r.method, func(t *testing.T) {
			s.t = t
			def, vm := len(s.def.got(r.method)), len(s.vm.got(r.method))
			answer, header, trailer := s.call(r, nil)
			s.wantMessage("the list", answer, s.both(r))
			wantTrace(t, s.def, r.method, def)
			wantTrace(t, s.vm, r.method, vm)
			wantMetadata(t, header, trailer, "containerd")
		})
	}
}

// Every Stream* method has the parts of both runtimes, of each by its stream or,
// where it has none, by its list.
func TestEveryStreamedList(t *testing.T) {
	s := newSamples(t)
	streamed := 0
	for _, r := range sortedRules(t) {
		if r.do != toEveryStream {
			continue
		}
		streamed++
		for _, has := range []struct{ def, vm bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
			t.Run(fmt.Sprintf("%s, default streams %v, vm streams %v", r.method, has.def, has.vm), func(t *testing.T) {
				s.t = t
				s.def.streams, s.vm.streams = has.def, has.vm
				def, vm := len(s.def.got(r.method)), len(s.vm.got(r.method))
				stream := s.stream(r)
				var list []byte
				for {
					var part frame
					err := stream.RecvMsg(&part)
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					list = append(list, part.bytes()...)
				}
				s.wantMessage("the list", list, s.both(r))
				wantTrace(t, s.def, r.method, def)
				wantTrace(t, s.vm, r.method, vm)
				wantMetadata(t, must[metadata.MD](t)(stream.Header()), stream.Trailer(), "containerd")
			})
		}
	}
	const promised = 6
	if streamed != promised {
		t.Errorf("%d methods stream lists, want %d", streamed, promised)
	}
}

// The event stream has both runtimes' events whole, and takes the metadata to both.
func TestEveryFieldOfEvents(t *testing.T) {
	s := newSamples(t)
	r := s.rules.runtime("GetContainerEvents")
	stream := s.stream(r)
	ofVM := 0
	for range 2 {
		var event frame
		if err := stream.RecvMsg(&event); err != nil {
			t.Fatal(err)
		}
		var want proto.Message = sample(r.answer, s.ids, "")
		if strings.Contains(string(event.bytes()), "vm."+sampleID) {
			want = s.prefixed(r)
			ofVM++
		}
		s.wantMessage("the event", event.bytes(), want)
	}
	if ofVM != 1 {
		t.Errorf("%d of two events are of a VM, want one", ofVM)
	}
	wantTrace(t, s.def, r.method, 0)
	wantTrace(t, s.vm, r.method, 0)
}
