package proxy

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambipod/ambipod/pkg/proxy/wire"
)

// mergeDescriptors is the union of metric descriptors by name; the first backend
// to describe a name wins, and the default is first.
func mergeDescriptors(m *merging) (*frame, error) {
	const descriptors = protowire.Number(1)
	seen := map[string]bool{}
	var all []byte
	for _, part := range m.parts {
		err := wire.Each(part.reply.frame.bytes(), descriptors, func(descriptor []byte) error {
			name, err := wire.Path{1}.Value(descriptor)
			if err != nil || seen[string(name)] {
				return err
			}
			seen[string(name)] = true
			all = protowire.AppendTag(all, descriptors, protowire.BytesType)
			all = protowire.AppendBytes(all, descriptor)
			return nil
		})
		if err != nil {
			return nil, part.backend.garbage(m.rule, err)
		}
	}
	return frameOf(all), nil
}

// mergeFilesystems joins the file systems, the default's first: kubelet reads
// the first one only, and takes none at all for an error.
func mergeFilesystems(m *merging) (*frame, error) {
	if !slices.ContainsFunc(m.parts, func(part *answer) bool { return part.reply.frame.data.Len() > 0 }) {
		return nil, status.Errorf(codes.Unavailable, "%s: no runtime reports a file system for images", m.rule.method)
	}
	return mergeLists(m)
}
