package redact

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Hidden stands for what must not be shown.
const Hidden = "[redacted]"

// kubeletPrefix begins the names of the annotations that kubelet writes itself.
const kubeletPrefix = "io.kubernetes."

// annotations is the name of the maps that may carry cloud-init data.
const annotations = "annotations"

// Message removes what may be secret, and fields that we do not know. It keeps the
// annotations that kubelet writes itself.
func Message(message protoreflect.Message) {
	message.SetUnknown(nil)
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case isSecret(field):
			redactField(message, field)
		case field.IsMap():
			if field.Name() == annotations {
				redactMap(value.Map())
			}
		case field.IsList() && isCommand(field):
			for i := 1; i < value.List().Len(); i++ {
				value.List().Set(i, protoreflect.ValueOfString(Hidden))
			}
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				Message(value.List().Get(i).Message())
			}
		case field.Message() != nil:
			Message(value.Message())
		}
		return true
	})
}

func redactField(message protoreflect.Message, field protoreflect.FieldDescriptor) {
	if field.Kind() == protoreflect.BytesKind {
		message.Set(field, protoreflect.ValueOfBytes([]byte(Hidden)))
		return
	}
	message.Set(field, protoreflect.ValueOfString(Hidden))
}

// redactMap hides all values but those that kubelet writes itself.
func redactMap(m protoreflect.Map) {
	m.Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool {
		if !strings.HasPrefix(key.String(), kubeletPrefix) {
			m.Set(key, protoreflect.ValueOfString(Hidden))
		}
		return true
	})
}

// isSecret: the CRI marks the fields of AuthConfig; a KeyValue is an environment variable.
func isSecret(field protoreflect.FieldDescriptor) bool {
	if options, ok := field.Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
		return true
	}
	return field.FullName() == "runtime.v1.KeyValue.value"
}

func isCommand(field protoreflect.FieldDescriptor) bool { return isCommandName(string(field.Name())) }

func isCommandName(name string) bool { return name == "cmd" || name == "command" || name == "args" }
