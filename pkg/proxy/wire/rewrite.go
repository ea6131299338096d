package wire

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Kind says what a rewritable string field holds; its values belong to the caller.
// The zero Kind marks fields that are never rewritten.
type Kind uint8

// Kinds gives the fields that hold something to rewrite, by their full names,
// such as "runtime.v1.Container.id".
type Kinds map[protoreflect.FullName]Kind

// Edit decides on the new value of a field: head followed by tail. Both may
// alias value. ok is false when the value stays as it is.
type Edit func(kind Kind, value []byte) (head string, tail []byte, ok bool)

// Schema knows where in one type of message the rewritable fields are. A nil
// Schema is of a message that has none.
type Schema struct {
	fields map[protowire.Number]target
}

// target is a field to rewrite (kind) or to descend into (message).
type target struct {
	kind    Kind
	message *Schema
}

// Compile finds the rewritable fields of a message and of all that it contains.
func Compile(message protoreflect.MessageDescriptor, kinds Kinds) *Schema {
	return compile(message, kinds, map[protoreflect.FullName]bool{})
}

// compile refuses recursion through open: no message of the CRI contains itself,
// and one that did would be copied unchanged below its second level.
func compile(message protoreflect.MessageDescriptor, kinds Kinds, open map[protoreflect.FullName]bool) *Schema {
	if open[message.FullName()] {
		return nil
	}
	open[message.FullName()] = true
	defer delete(open, message.FullName())

	fields := map[protowire.Number]target{}
	all := message.Fields()
	for i := range all.Len() {
		field := all.Get(i)
		if kind := kinds[field.FullName()]; kind != 0 {
			fields[field.Number()] = target{kind: kind}
		} else if field.Message() != nil {
			if inner := compile(field.Message(), kinds, open); inner != nil {
				fields[field.Number()] = target{message: inner}
			}
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return &Schema{fields: fields}
}

// Rewrite applies edit to every rewritable field of src, which it never
// modifies. It returns src itself when nothing changes.
func (s *Schema) Rewrite(src []byte, edit Edit) (out []byte, changed bool, err error) {
	if s == nil {
		return src, false, nil
	}
	dst, changed, err := s.rewrite(make([]byte, 0, len(src)+len(src)/8), src, edit)
	if err != nil || !changed {
		return src, false, err
	}
	return dst, true, nil
}

func (s *Schema) rewrite(dst, src []byte, edit Edit) (out []byte, changed bool, err error) {
	for len(src) > 0 {
		f, rest, err := Next(src)
		if err != nil {
			return nil, false, err
		}
		src = rest
		t, known := s.fields[f.Number]
		if !known || f.Type != protowire.BytesType {
			dst = append(dst, f.Raw...)
			continue
		}
		var edited bool
		if t.message != nil {
			dst, edited, err = t.message.rewriteNested(dst, f, edit)
			if err != nil {
				return nil, false, err
			}
		} else {
			dst, edited = rewriteValue(dst, f, t.kind, edit)
		}
		changed = changed || edited
	}
	return dst, changed, nil
}

func rewriteValue(dst []byte, f Field, kind Kind, edit Edit) ([]byte, bool) {
	head, tail, ok := edit(kind, f.Value)
	if !ok {
		return append(dst, f.Raw...), false
	}
	dst = protowire.AppendTag(dst, f.Number, f.Type)
	dst = protowire.AppendVarint(dst, uint64(len(head)+len(tail)))
	dst = append(dst, head...)
	return append(dst, tail...), true
}

// rewriteNested writes the message behind a placeholder of one byte for its
// length and makes room afterwards if the length needs more.
func (s *Schema) rewriteNested(dst []byte, f Field, edit Edit) ([]byte, bool, error) {
	start := len(dst)
	dst = protowire.AppendTag(dst, f.Number, f.Type)
	placeholder := len(dst)
	dst = append(dst, 0)
	dst, changed, err := s.rewrite(dst, f.Value, edit)
	if err != nil {
		return nil, false, err
	}
	if !changed {
		return append(dst[:start], f.Raw...), false, nil
	}
	length := uint64(len(dst) - placeholder - 1) //nolint:gosec // never negative: the placeholder is in dst
	if extra := protowire.SizeVarint(length) - 1; extra > 0 {
		dst = append(dst, make([]byte, extra)...)
		copy(dst[placeholder+1+extra:], dst[placeholder+1:len(dst)-extra])
	}
	protowire.AppendVarint(dst[:placeholder], length)
	return dst, true, nil
}
