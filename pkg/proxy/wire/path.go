package wire

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Path leads from a message through message fields to one string, map or message field.
type Path []protowire.Number

// CompilePath turns a dotted list of field names, such as "config.annotations",
// into a Path of the message.
func CompilePath(message protoreflect.MessageDescriptor, dotted string) (Path, error) {
	var path Path
	for name := range strings.SplitSeq(dotted, ".") {
		if message == nil {
			return nil, fmt.Errorf("compile path %q: a part before %q is no message", dotted, name)
		}
		field := message.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			return nil, fmt.Errorf("compile path %q: message %s has no field %q", dotted, message.FullName(), name)
		}
		path = append(path, field.Number())
		message = field.Message()
	}
	return path, nil
}

// Value returns the last occurrence of the path's last field, nil if there is none.
func (p Path) Value(src []byte) ([]byte, error) {
	var last []byte
	err := p.Each(src, func(value []byte) error {
		last = value
		return nil
	})
	return last, err
}

// Entries calls visit for each key and value of the string map that the path leads to.
func (p Path) Entries(src []byte, visit func(key, value []byte) error) error {
	return p.Each(src, func(entry []byte) error {
		key, err := Path{1}.Value(entry)
		if err != nil {
			return err
		}
		value, err := Path{2}.Value(entry)
		if err != nil {
			return err
		}
		return visit(key, value)
	})
}

// Each calls visit for every occurrence of the path's last field, in order.
func (p Path) Each(src []byte, visit func(value []byte) error) error {
	if len(p) == 0 {
		return visit(src)
	}
	return Each(src, p[0], func(value []byte) error { return p[1:].Each(value, visit) })
}
