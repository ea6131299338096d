package proxy

import (
	"fmt"

	"google.golang.org/grpc/mem"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// frame is one encoded protobuf message on its way through the proxy.
//
// It owns one reference to each of its buffers. Sending a frame gives that
// reference to gRPC and leaves the frame empty; a frame that is not sent is
// released by free. A forgotten free costs a buffer its place in the pool, no more.
type frame struct {
	data mem.BufferSlice
}

// frameOf makes a frame of bytes that nobody will modify.
func frameOf(message []byte) *frame {
	return &frame{data: mem.BufferSlice{mem.SliceBuffer(message)}}
}

// bytes returns the message in one piece, valid until the frame is sent or freed.
func (f *frame) bytes() []byte {
	switch len(f.data) {
	case 0:
		return nil
	case 1:
		return f.data[0].ReadOnlyData()
	}
	whole := f.data.Materialize()
	f.data.Free()
	f.data = mem.BufferSlice{mem.SliceBuffer(whole)}
	return whole
}

// rewritten returns a frame with the edited message; f remains as it is.
func (f *frame) rewritten(schema *wire.Schema, edit wire.Edit) (*frame, error) {
	if schema == nil {
		return f.share(), nil
	}
	out, changed, err := schema.Rewrite(f.bytes(), edit)
	if err != nil {
		return nil, err
	}
	if !changed {
		return f.share(), nil
	}
	return frameOf(out), nil
}

// share returns a second frame over the same buffers.
func (f *frame) share() *frame {
	f.data.Ref()
	return &frame{data: f.data}
}

func (f *frame) free() {
	f.data.Free()
	f.data = nil
}

// codec hands encoded messages through gRPC as they are.
type codec struct{}

// Name is what ordinary protobuf peers call their encoding.
func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("marshal %T: the proxy sends frames only", v)
	}
	data := f.data
	f.data = nil
	return data, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("unmarshal into %T: the proxy receives frames only", v)
	}
	data.Ref()
	f.data = data
	return nil
}
