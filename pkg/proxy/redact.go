package proxy

import (
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// hidden stands for what a log must not show.
const hidden = "[redacted]"

// redacted is a request as text, without what may be secret: what the CRI marks
// so, values of environment variables and annotations (they may carry cloud-init
// data), all words of a command but its first, and fields that we do not know.
func redacted(r *rule, request []byte) string {
	message := dynamicpb.NewMessage(r.asks)
	if err := proto.Unmarshal(request, message); err != nil {
		return "unreadable: " + err.Error()
	}
	redact(message)
	return strings.TrimSpace(prototext.MarshalOptions{}.Format(message))
}

func redact(message protoreflect.Message) {
	message.SetUnknown(nil)
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case isSecret(field):
			redactField(message, field)
		case field.IsMap():
			if field.Name() == "annotations" {
				redactMap(value.Map())
			}
		case field.IsList() && isCommand(field):
			for i := 1; i < value.List().Len(); i++ {
				value.List().Set(i, protoreflect.ValueOfString(hidden))
			}
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				redact(value.List().Get(i).Message())
			}
		case field.Message() != nil:
			redact(value.Message())
		}
		return true
	})
}

func redactField(message protoreflect.Message, field protoreflect.FieldDescriptor) {
	if field.Kind() == protoreflect.BytesKind {
		message.Set(field, protoreflect.ValueOfBytes([]byte(hidden)))
		return
	}
	message.Set(field, protoreflect.ValueOfString(hidden))
}

// redactMap hides all values but those that kubelet writes itself.
func redactMap(m protoreflect.Map) {
	m.Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool {
		if !strings.HasPrefix(key.String(), "io.kubernetes.") {
			m.Set(key, protoreflect.ValueOfString(hidden))
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

func isCommand(field protoreflect.FieldDescriptor) bool {
	return field.Name() == "cmd" || field.Name() == "command" || field.Name() == "args"
}
