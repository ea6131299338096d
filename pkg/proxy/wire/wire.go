// Package wire reads and rewrites protobuf messages in their encoded form.
//
// A Schema is compiled once, from a message's descriptor and the set of fields
// that hold something to be rewritten. Rewriting then walks the encoded message,
// descends only into fields that can contain such a value, and copies all the
// rest, known or not, byte for byte. Path and Each read single fields the same
// way. Everything here is a pure function of its arguments and safe for
// concurrent use.
//
// Trap: protobuf allows a singular field to occur more than once; the last
// occurrence counts, and occurrences of a message are merged. Value and Values
// follow that rule, so that a router and a decoder never see different values.
package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is wrapped by every error about bytes that are no protobuf message.
var ErrMalformed = errors.New("malformed protobuf message")

// Field is one field of an encoded message; its slices alias the message.
type Field struct {
	Number protowire.Number
	Type   protowire.Type
	Raw    []byte // tag and value as they were encoded
	Value  []byte // payload of a length-delimited field, else nil
}

// Next takes the first field off src and returns it and what follows.
func Next(src []byte) (Field, []byte, error) {
	number, typ, tagLen := protowire.ConsumeTag(src)
	if tagLen < 0 {
		return Field{}, nil, malformed(protowire.ParseError(tagLen))
	}
	if number > protowire.MaxValidNumber { // ConsumeTag lets more pass than decoders do
		return Field{}, nil, malformed(fmt.Errorf("field number %d is too large", number))
	}
	valueLen := protowire.ConsumeFieldValue(number, typ, src[tagLen:])
	if valueLen < 0 {
		return Field{}, nil, malformed(protowire.ParseError(valueLen))
	}
	end := tagLen + valueLen
	f := Field{Number: number, Type: typ, Raw: src[:end:end]}
	if typ == protowire.BytesType {
		f.Value, _ = protowire.ConsumeBytes(src[tagLen:end:end])
	}
	return f, src[end:], nil
}

// Each calls visit with the payload of every length-delimited occurrence of a field.
func Each(src []byte, number protowire.Number, visit func(value []byte) error) error {
	for len(src) > 0 {
		f, rest, err := Next(src)
		if err != nil {
			return err
		}
		if f.Number == number && f.Type == protowire.BytesType {
			if err := visit(f.Value); err != nil {
				return err
			}
		}
		src = rest
	}
	return nil
}

func malformed(err error) error { return fmt.Errorf("%w: %w", ErrMalformed, err) }
