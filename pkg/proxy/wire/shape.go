package wire

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Shape is what has to be true of the encoding of one type of message for a
// decoder to accept it.
type Shape struct {
	name   protoreflect.FullName
	fields map[protowire.Number]member
}

// member says what a length-delimited field must contain.
type member struct {
	message *Shape
	text    bool                        // UTF-8
	packed  func(b []byte) (length int) // takes one number off; nil: not packed
}

// ShapeOf compiles the shape of a message and of all that it contains.
func ShapeOf(message protoreflect.MessageDescriptor) *Shape {
	return shapeOf(message, map[protoreflect.FullName]*Shape{})
}

func shapeOf(message protoreflect.MessageDescriptor, done map[protoreflect.FullName]*Shape) *Shape {
	if s := done[message.FullName()]; s != nil {
		return s
	}
	s := &Shape{name: message.FullName(), fields: map[protowire.Number]member{}}
	done[s.name] = s
	all := message.Fields()
	for i := range all.Len() {
		switch field := all.Get(i); {
		case field.Kind() == protoreflect.MessageKind:
			s.fields[field.Number()] = member{message: shapeOf(field.Message(), done)}
		case field.Kind() == protoreflect.StringKind:
			s.fields[field.Number()] = member{text: true}
		case field.IsList() && field.Kind() != protoreflect.BytesKind:
			s.fields[field.Number()] = member{packed: number(field.Kind())}
		}
	}
	return s
}

// number returns what takes one number of a kind off a packed list.
func number(kind protoreflect.Kind) func(b []byte) int {
	switch kind {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return func(b []byte) int { _, n := protowire.ConsumeFixed32(b); return n }
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return func(b []byte) int { _, n := protowire.ConsumeFixed64(b); return n }
	default:
		return func(b []byte) int { _, n := protowire.ConsumeVarint(b); return n }
	}
}

// errNotUTF8 is of a string field with other bytes in it.
var errNotUTF8 = errors.New("a string is not UTF-8")

// Check returns an error if and only if a decoder would refuse the message. Like
// a decoder it skips unknown fields and fields of an unexpected wire type.
func (s *Shape) Check(src []byte) error {
	for len(src) > 0 {
		f, rest, err := Next(src)
		if err != nil {
			return err
		}
		src = rest
		m, known := s.fields[f.Number]
		if !known || f.Type != protowire.BytesType {
			continue
		}
		if err := m.check(f.Value); err != nil {
			return fmt.Errorf("field %d of %s: %w", f.Number, s.name, err)
		}
	}
	return nil
}

func (m *member) check(value []byte) error {
	switch {
	case m.message != nil:
		return m.message.Check(value)
	case m.text && !utf8.Valid(value):
		return malformed(errNotUTF8)
	case m.packed != nil:
		for len(value) > 0 {
			n := m.packed(value)
			if n < 0 {
				return malformed(protowire.ParseError(n))
			}
			value = value[n:]
		}
	}
	return nil
}
